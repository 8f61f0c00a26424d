"""Convert trained Keras models to checkpoints of this project, exactly, without TensorFlow or Keras.

  python convert_to_pytorch.py old_model.h5                         writes old_model.pth beside it
  python convert_to_pytorch.py old_model.h5 -o new.pth
  python convert_to_pytorch.py a.h5 b.h5 old_checkpoints/ -o new/   several files, folders with all that is in them
  python convert_to_pytorch.py old_model.h5 --verify pages.npy outputs.npy
  python convert_to_pytorch.py --config config.json                 a config of the TensorFlow pipeline, and its model
  python convert_to_pytorch.py --template MODEL_NAME --resolution 64
  python convert_to_pytorch.py --all --resolution 64 -o templates/  a template of every network

Whole models and weights-only files of Keras 2 and 3 are read. Which network it is, and at which resolution, is found
from the shapes of the weights. The checkpoint has the normaliser "minmax", as the original scaled its images.

--verify takes images as the Keras network got them, (N, R, R), (N, 1, R, R) or (N, R, R, 1) with values 0..255, and
what Keras' model.predict returned for them, (N, 2). If they disagree nothing is written.

--config writes config_pytorch.json beside config.json and the checkpoint beside the Keras model.

A template is a checkpoint with random weights from a seed: it loads like any other and has learnt nothing.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

import numpy as np
import torch
from tqdm import tqdm

from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.keras_h5 import find_network, open_keras, read_state_dict
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder, set_seed
from single_pulse_classifier_training.training_models import RESOLUTIONS, build_model, models_htable

KERAS_SUFFIXES = (".h5", ".hdf5")
VERIFY_BATCH = 64


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="Keras .h5 files, or folders that hold them")
    parser.add_argument("-o", "--output", help="file of a single result, folder of several (default: beside the input)")
    parser.add_argument("--resolution", type=int, help="side of the images; needed for a template")
    parser.add_argument("--verify", nargs=2, metavar=("PAGES", "OUTPUTS"), help="compare with outputs that Keras gave")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of --verify, in softmax (default: %(default)s)")
    parser.add_argument("--config", help="config.json of the TensorFlow pipeline")
    parser.add_argument("--template", nargs="?", const="", metavar="MODEL_NAME", help="a template of this network")
    parser.add_argument("--all", action="store_true", help="a template of every network")
    parser.add_argument("--seed", type=int, default=0, help="of a template (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist already")
    return parser


def run(args: argparse.Namespace) -> list[Path]:
    """Do what the command line asks for; return the files written."""
    template = args.template is not None or args.all
    if sum((bool(args.models), args.config is not None, template)) != 1:
        raise InputError("give one of: Keras files or folders, --config, --template MODEL_NAME, --all")
    if args.verify and (len(args.models) != 1 or Path(args.models[0]).is_dir()):
        raise InputError("--verify compares one model: give one Keras file with it")
    if template:
        return write_templates(args)
    if args.config is not None:
        return migrate_config(Path(args.config), args.output, args.resolution, args.overwrite)
    return convert_files(args)


def convert_files(args: argparse.Namespace) -> list[Path]:
    """Convert the Keras files of the command line; a bad one stops all before anything is written."""
    jobs = plan(args.models, args.output)
    check_targets([target for _, target in jobs], args.overwrite)
    if len(jobs) > 1:
        for source, _ in tqdm(jobs, unit="model", desc="check", disable=None):
            convert(source, args.resolution)
    for source, target in jobs:
        checkpoint, lines = convert(source, args.resolution)
        if args.verify:
            pages, outputs = args.verify
            lines.append(verify(checkpoint, pages, outputs, args.tolerance))
        write(target, checkpoint, lines)
    return [target for _, target in jobs]


def plan(models: list[str], output: str | None) -> list[tuple[Path, Path]]:
    """Which Keras file becomes which checkpoint: beside it, or where ``output`` says."""
    single = len(models) == 1 and not Path(models[0]).is_dir()
    if single and output and not Path(output).is_dir():
        if Path(output).suffix != ".pth":
            raise InputError(f"--output {output}: the name of a checkpoint must end in .pth")
        return [(Path(models[0]), Path(output))]
    jobs = []
    for given in map(Path, models):
        if given.is_dir():
            found = sorted(path for path in given.rglob("*") if path.suffix.lower() in KERAS_SUFFIXES)
            if not found:
                raise InputError(f"the folder {given} holds no Keras file ({', '.join(KERAS_SUFFIXES)})")
            names = [(path, path.relative_to(given)) for path in found]
        else:
            names = [(given, Path(given.name))]
        for path, name in names:
            target = Path(output) / name if output else path
            jobs.append((path, target.with_suffix(".pth")))
    return jobs


def check_targets(targets: list[Path], overwrite: bool) -> None:
    """InputError if a result would replace another one or a file that exists."""
    for i, target in enumerate(targets):
        if target in targets[:i]:
            raise InputError(f"two inputs would both become {target}: convert them to different folders")
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists already: use --overwrite to replace it, or --output for another name")


def convert(path: Path, resolution: int | None = None) -> tuple[Checkpoint, list[str]]:
    """Convert a Keras .h5 file.

    Parameters
    ----------
    path : whole model or weights of Keras 2 or 3
    resolution : what it must be; None finds it

    Returns
    -------
    checkpoint : network in evaluation mode and its description; normaliser "minmax"
    lines : what was found and what was mapped to what

    Raises
    ------
    InputError : see ``keras_h5``.
    """
    with open_keras(path) as keras:
        model_name, resolution = find_network(keras, resolution)
        state_dict, mapping = read_state_dict(keras, model_name, resolution)
        layout = keras.layout
    with torch.device("meta"):
        model = build_model(model_name, resolution)
    model.load_state_dict(state_dict, assign=True)
    parameters = sum(tensor.numel() for tensor in state_dict.values())
    lines = [f"{path} ({layout}): {model_name} at {resolution}, {parameters:,} parameters"]
    checkpoint = Checkpoint(model.eval(), model_name, resolution, config={"converted_from": f"{path.name}, {layout}"})
    return checkpoint, lines + [f"  {line}" for line in mapping]


def verify(checkpoint: Checkpoint, pages_path: str, outputs_path: str, tolerance: float) -> str:
    """Compare the network with what Keras returned; InputError if they differ by more than ``tolerance`` in softmax.

    ``outputs`` (N, 2) may be Keras' softmax, or logits where the last Keras layer had no activation.
    """
    images, outputs = _load_array(pages_path), _load_array(outputs_path)
    side = checkpoint.resolution
    if images.shape[1:] not in ((side, side), (1, side, side), (side, side, 1)) or len(images) == 0:
        raise InputError(f"{pages_path}: shape {images.shape} is not (N, {side}, {side}[, 1]) with N > 0")
    if outputs.shape != (len(images), 2):
        raise InputError(f"{outputs_path}: shape {outputs.shape} is not ({len(images)}, 2), two outputs for each image")
    returned = torch.from_numpy(outputs.astype(np.float64))
    is_softmax = bool((returned >= 0).all() and ((returned.sum(1) - 1).abs() < 1e-3).all())
    expected = returned if is_softmax else returned.softmax(1)
    found = torch.empty_like(expected)
    with torch.inference_mode():
        for first in tqdm(range(0, len(images), VERIFY_BATCH), unit="batch", desc="verify", disable=None):
            batch = np.ascontiguousarray(images[first : first + VERIFY_BATCH], dtype=np.float32)
            logits = checkpoint.model(torch.from_numpy(batch.reshape(-1, 1, side, side)))
            found[first : first + VERIFY_BATCH] = logits.double().softmax(1)
    difference = (found - expected).abs().amax().item()
    agree = int((found.argmax(1) == expected.argmax(1)).sum())
    result = f"largest difference in softmax {difference:.2g}, same class for {agree} of {len(images)} images"
    if not difference <= tolerance:
        raise InputError(f"--verify {outputs_path}: {result}, above the tolerance {tolerance:g}; nothing was written")
    return f"  verified: {result}"


def _load_array(path: str) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a .npy array of numbers ({error})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise InputError(f"{path} is not a .npy array of numbers")
    return array


def write(target: Path, checkpoint: Checkpoint, lines: list[str]) -> None:
    """Write a checkpoint and print ``lines`` and its name."""
    make_output_folder(target.parent, "--output")
    save_checkpoint(target, checkpoint)
    print("\n".join([*lines, f"  written: {target}"]))


def write_templates(args: argparse.Namespace) -> list[Path]:
    """Write checkpoints with random weights from a seed, for one network or for all."""
    names = list(models_htable) if args.all else [args.template]
    if args.resolution is None:
        raise InputError(f"a template needs --resolution: {', '.join(map(str, RESOLUTIONS))} exist for every network")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed {args.seed}: valid are 0 to {2**32 - 1}")
    with torch.device("meta"):
        for name in names:
            build_model(name, args.resolution)  # an unknown name or resolution ends here
    targets = [Path(f"{name}_{args.resolution}_template.pth") for name in names]
    if args.output and Path(args.output).suffix == ".pth" and not args.all:
        targets = [Path(args.output)]
    elif args.output:
        targets = [Path(args.output) / target for target in targets]
    check_targets(targets, args.overwrite)
    for name, target in zip(names, targets, strict=True):
        set_seed(args.seed)
        model = build_model(name, args.resolution).eval()
        checkpoint = Checkpoint(model, name, args.resolution, config={"template": True, "seed": args.seed})
        write(target, checkpoint, [f"{name} at {args.resolution}: random weights, seed {args.seed}"])
    return targets


def migrate_config(path: Path, output: str | None, resolution: int | None, overwrite: bool) -> list[Path]:
    """Write the config of the TensorFlow pipeline anew for this one, and convert the Keras model that it names."""
    old = _read_json(path)
    model: Any = old.get("name_of_the_model")
    has_keras_model = isinstance(model, str) and model.lower().endswith((*KERAS_SUFFIXES, ".keras"))
    if not has_keras_model and "workers_for_tensorflow" not in old:
        raise InputError(f"{path} needs no change: it names no Keras model and has no key 'workers_for_tensorflow'")
    if "workers_for_tensorflow" in old and "workers_for_pytorch" in old:
        raise InputError(f"{path} has both 'workers_for_tensorflow' and 'workers_for_pytorch': remove the first")
    config_target = Path(output) if output else path.with_name(f"{path.stem}_pytorch.json")
    targets, added = [config_target], {}
    if has_keras_model:
        models = old.get("path_to_models")
        source = path.absolute().parent / Path(models if isinstance(models, str) else "").expanduser() / model
        if not isinstance(models, str) or not source.is_file():
            raise InputError(f"{path}: path_to_models {models!r} and name_of_the_model {model!r}: there is no {source}")
        targets.insert(0, source.with_suffix(".pth"))
        checkpoint, lines = convert(source, resolution)
        added = {"model_name": checkpoint.model_name, "resolution": checkpoint.resolution}
    check_targets(targets, overwrite)
    new = {}
    for key, value in old.items():
        if key == "workers_for_tensorflow":
            new["workers_for_pytorch"] = value
        elif key == "name_of_the_model" and has_keras_model:
            new |= {key: str(Path(model).with_suffix(".pth")), **added}
        elif key not in added:
            new[key] = value
    if has_keras_model:
        write(targets[0], checkpoint, lines)
    with atomic_writer(config_target) as file:
        file.write((json.dumps(new, indent=4, ensure_ascii=False) + "\n").encode())
    print(f"{path}: changed config written to {config_target}")
    for key in dict.fromkeys((*old, *new)):
        if key not in new or key not in old or old[key] != new[key]:
            before, after = (f'"{key}": {json.dumps(c[key])}' if key in c else "nothing" for c in (old, new))
            print(f"  {before} -> {after}")
    return targets


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"config file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object {{...}}, not a {type(content).__name__}")
    return content


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()

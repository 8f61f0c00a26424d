"""Convert trained Keras models to checkpoints of this project, without TensorFlow or Keras.

  python convert_to_pytorch.py old_model.h5                         writes old_model.pth beside it
  python convert_to_pytorch.py old_model.h5 -o new.pth
  python convert_to_pytorch.py a.h5 b.h5 old_checkpoints/ -o new/   several files, and folders with all their models
  python convert_to_pytorch.py old_model.h5 --verify pages.npy outputs.npy
  python convert_to_pytorch.py --config config.json                 a config of the TensorFlow pipeline, and its model
  python convert_to_pytorch.py --template MODEL_NAME --resolution 64
  python convert_to_pytorch.py --all --resolution 64 -o templates/  a template of every network

Whole models and weights-only files of Keras 2 and 3 are read. The network and its resolution are found from the shapes
of the weights. The checkpoint has the normaliser "minmax", because the original scaled its images in this way.

--verify takes images in the form that the Keras network received, (N, R, R), (N, 1, R, R) or (N, R, R, 1) with values
0..255, and the result of Keras' model.predict for them, (N, 2). If the results differ, nothing is written.

--config writes config_pytorch.json beside config.json and the checkpoint beside the Keras model.

A template is a checkpoint with random weights from a seed. It loads like any other, but is not trained.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()
    from single_pulse_classifier_training.options import conversion_parser

    conversion_parser(__doc__).parse_args()  # --help and errors of the command line, before torch is imported

import numpy as np
import torch
from tqdm import tqdm

from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.config import ConfigFile, Name, check_config, read_json
from single_pulse_classifier_training.input_files import check_is_file, open_npy
from single_pulse_classifier_training.keras_h5 import find_network, open_keras, read_state_dict
from single_pulse_classifier_training.options import conversion_parser
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder, set_seed
from single_pulse_classifier_training.training_models import RESOLUTIONS, build_model, default_channels, models_htable

KERAS_SUFFIXES = (".h5", ".hdf5")
VERIFY_BATCH = 64


@dataclass(frozen=True)
class Reference:
    """Outputs of Keras that a converted network must reproduce.

    Parameters
    ----------
    pages, outputs : str
        .npy files of images and of the outputs for them.
    tolerance : float
        Largest difference in softmax.
    """

    pages: str
    outputs: str
    tolerance: float


class KerasModelFile(ConfigFile, extra="ignore"):
    """The keys of a config of the TensorFlow pipeline that name the Keras model."""

    path_to_models: Name
    name_of_the_model: Name

    @property
    def path(self) -> Path:
        """The Keras model."""
        return self.resolve(self.path_to_models) / self.name_of_the_model


def get_parser() -> argparse.ArgumentParser:
    return conversion_parser(__doc__)


def run(args: argparse.Namespace) -> list[Path]:
    """Convert as the command line says; return the files written."""
    template = args.template is not None or args.all
    if sum((bool(args.models), args.config is not None, template)) != 1:
        raise InputError("give one of: Keras files or folders, --config, --template MODEL_NAME, --all")
    if args.verify and (len(args.models) != 1 or Path(args.models[0]).is_dir()):
        raise InputError("--verify needs exactly one Keras file")
    if template:
        names = list(models_htable) if args.all else [args.template]
        return write_templates(names, args.resolution, args.seed, args.output, args.overwrite)
    if args.config is not None:
        return migrate_config(Path(args.config), args.output, args.resolution, args.overwrite)
    reference = None
    if args.verify:
        pages, outputs = args.verify
        reference = Reference(pages, outputs, args.tolerance)
    return convert_files(args.models, args.output, args.resolution, reference, args.overwrite)


def convert_files(
    models: list[str], output: str | None, resolution: int | None, reference: Reference | None, overwrite: bool
) -> list[Path]:
    """Convert Keras files; if one cannot be converted, nothing is written.

    Parameters
    ----------
    models : list of str
        Files, or folders that hold them.
    output : str or None
        File of a single result, folder of several; None writes each result beside its input.
    resolution : int or None
        Expected resolution; None finds it from the weights.
    reference : Reference or None
        Outputs of Keras to compare a single model with.
    overwrite : bool
        Replace files that exist.

    Returns
    -------
    paths : list of Path
        Files written.
    """
    jobs = plan(models, output)
    check_targets([target for _, target in jobs], overwrite)
    if len(jobs) > 1:
        for source, _ in tqdm(jobs, unit="model", desc="check", disable=None):
            convert(source, resolution)
    for source, target in jobs:
        checkpoint, lines = convert(source, resolution)
        if reference is not None:
            lines.append(verify(checkpoint, reference))
        write(target, checkpoint, lines)
    return [target for _, target in jobs]


def plan(models: list[str], output: str | None) -> list[tuple[Path, Path]]:
    """Return pairs of Keras file and checkpoint to write, beside the file or where ``output`` says."""
    single = len(models) == 1 and not Path(models[0]).is_dir()
    if single and output and not Path(output).is_dir():
        if Path(output).suffix != ".pth":
            raise InputError(f"--output must end in .pth for a single model, got {output}")
        return [(Path(models[0]), Path(output))]
    jobs = []
    for given in map(Path, models):
        if given.is_dir():
            found = sorted(path for path in given.rglob("*") if path.suffix.lower() in KERAS_SUFFIXES)
            if not found:
                raise InputError(f"{given}: the folder must hold Keras files ({', '.join(KERAS_SUFFIXES)}), got none")
            names = [(path, path.relative_to(given)) for path in found]
        else:
            names = [(given, Path(given.name))]
        for path, name in names:
            target = Path(output) / name if output else path
            jobs.append((path, target.with_suffix(".pth")))
    return jobs


def check_targets(targets: list[Path], overwrite: bool) -> None:
    """Raise InputError if a result would replace another result or an existing file."""
    for i, target in enumerate(targets):
        if target in targets[:i]:
            raise InputError(f"two inputs would be written to {target}: convert them to different folders")
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists already: use --overwrite to replace it, or --output for another name")


def convert(path: Path, resolution: int | None = None) -> tuple[Checkpoint, list[str]]:
    """Convert a Keras .h5 file.

    Parameters
    ----------
    path : Path
        Whole model or weights of Keras 2 or 3.
    resolution : int, optional
        Expected resolution; None finds it from the weights.

    Returns
    -------
    checkpoint : Checkpoint
        The network in evaluation mode, with the normaliser "minmax".
    lines : list of str
        The network found, and which tensor became which.

    Raises
    ------
    InputError
        See ``keras_h5``.
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


def verify(checkpoint: Checkpoint, reference: Reference) -> str:
    """Compare a network with outputs of Keras; these may be softmax, or logits if the last layer had no activation.

    Returns
    -------
    line : str
        The result as text.

    Raises
    ------
    InputError
        If an array has the wrong shape, or the softmax differs by more than the tolerance.
    """
    images, outputs = _load_array(reference.pages), _load_array(reference.outputs)
    size = checkpoint.resolution
    if images.shape[1:] not in ((size, size), (1, size, size), (size, size, 1)) or len(images) == 0:
        raise InputError(
            f"{reference.pages}: the shape must be (N, {size}, {size}[, 1]) with N > 0, got {images.shape}"
        )
    if outputs.shape != (len(images), 2):
        raise InputError(f"{reference.outputs}: the shape must be ({len(images)}, 2), got {outputs.shape}")
    returned = torch.from_numpy(outputs.astype(np.float64))
    is_softmax = bool((returned >= 0).all() and ((returned.sum(1) - 1).abs() < 1e-3).all())
    expected = returned if is_softmax else returned.softmax(1)
    found = torch.empty_like(expected)
    with torch.inference_mode():
        for first in tqdm(range(0, len(images), VERIFY_BATCH), unit="batch", desc="verify", disable=None):
            batch = np.ascontiguousarray(images[first : first + VERIFY_BATCH], dtype=np.float32)
            logits = checkpoint.model(torch.from_numpy(batch.reshape(-1, 1, size, size)))
            found[first : first + VERIFY_BATCH] = logits.double().softmax(1)
    difference = (found - expected).abs().amax().item()
    agree = int((found.argmax(1) == expected.argmax(1)).sum())
    result = f"largest difference in softmax {difference:.2g}, same class for {agree} of {len(images)} images"
    if not difference <= reference.tolerance:
        raise InputError(
            f"--verify {reference.outputs}: the difference in softmax must be at most {reference.tolerance:g}, "
            f"got {result}; nothing was written"
        )
    return f"  verified: {result}"


def _load_array(path: str) -> np.ndarray:
    array = open_npy(path, "--verify")
    if array.dtype.kind not in "uif":
        raise InputError(f"--verify: {path} must hold numbers, got {array.dtype}")
    return array


def write(target: Path, checkpoint: Checkpoint, lines: list[str]) -> None:
    """Write a checkpoint, and print ``lines`` and its path."""
    make_output_folder(target.parent, "--output")
    save_checkpoint(target, checkpoint)
    print("\n".join([*lines, f"  written: {target}"]))


def write_templates(
    names: list[str], resolution: int | None, seed: int, output: str | None, overwrite: bool
) -> list[Path]:
    """Write checkpoints with random weights.

    Parameters
    ----------
    names : list of str
        Names of the networks.
    resolution : int or None
        Height and width of the images; required.
    seed : int
        Random seed of every network.
    output : str or None
        Folder of the results, or a .pth file for one network; None is the current folder.
    overwrite : bool
        Replace files that exist.

    Returns
    -------
    paths : list of Path
        Files written.
    """
    if resolution is None:
        raise InputError(f"--resolution must be given for a template: {', '.join(map(str, RESOLUTIONS))} always exist")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be 0 to {2**32 - 1}, got {seed}")
    with torch.device("meta"):
        for name in names:
            build_model(name, resolution)  # reports an unknown name or resolution before anything is written
    targets = [Path(f"{name}_{resolution}_template.pth") for name in names]
    if output and Path(output).suffix == ".pth" and len(names) == 1:
        targets = [Path(output)]
    elif output:
        targets = [Path(output) / target for target in targets]
    check_targets(targets, overwrite)
    for name, target in zip(names, targets, strict=True):
        set_seed(seed)
        model = build_model(name, resolution).eval()
        config = {"template": True, "seed": seed}
        checkpoint = Checkpoint(model, name, resolution, channels=default_channels(name), config=config)
        write(target, checkpoint, [f"{name} at {resolution}: random weights, seed {seed}"])
    return targets


def migrate_config(path: Path, output: str | None, resolution: int | None, overwrite: bool) -> list[Path]:
    """Convert a config of the TensorFlow pipeline and the Keras model that it names.

    Parameters
    ----------
    path : Path
        The old config.
    output : str or None
        The new config; None is ``<name>_pytorch.json`` beside the old one.
    resolution : int or None
        Expected resolution of the model; None finds it from the weights.
    overwrite : bool
        Replace files that exist.

    Returns
    -------
    paths : list of Path
        Files written.
    """
    old = read_json(path)
    model: Any = old.get("name_of_the_model")
    has_keras_model = isinstance(model, str) and model.lower().endswith((*KERAS_SUFFIXES, ".keras"))
    if not has_keras_model and "workers_for_tensorflow" not in old:
        raise InputError(
            f"{path} needs no change: it neither names a Keras model nor has the key 'workers_for_tensorflow'"
        )
    if "workers_for_tensorflow" in old and "workers_for_pytorch" in old:
        raise InputError(f"{path} has both 'workers_for_tensorflow' and 'workers_for_pytorch': remove the first")
    config_target = Path(output) if output else path.with_name(f"{path.stem}_pytorch.json")
    targets, added = [config_target], {}
    if has_keras_model:
        source = check_config(path, old, KerasModelFile).path
        check_is_file(source, f"{path}: the Keras model")
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
    print(f"{path}: new config written to {config_target}")
    for key in dict.fromkeys((*old, *new)):
        if key not in new or key not in old or old[key] != new[key]:
            before, after = (f'"{key}": {json.dumps(c[key])}' if key in c else "nothing" for c in (old, new))
            print(f"  {before} -> {after}")
    return targets


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()

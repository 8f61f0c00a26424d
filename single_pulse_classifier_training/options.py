"""Command lines of the scripts, read before torch is imported: ``--help`` and errors come at once."""

import argparse

from single_pulse_classifier_training.labelled_set import NATIVE_RESOLUTION
from single_pulse_classifier_training.runtime import DEVICES

FALSE_PER_HOUR = (1000.0, 200.0, 100.0, 30.0, 10.0, 1.0)  # default rates: three decades, chosen by hand
SPLITS = ("training", "validation", "test")


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of training.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="training config, a JSON file")
    parser.add_argument("--device", choices=DEVICES, help="where to train (default: device of the config, auto)")
    parser.add_argument("--epochs", type=int, help="maximum number of epochs (default: num_epochs of the config, 100)")
    parser.add_argument("--resume", action="store_true", help="continue from last.pth, or start if there is none")
    return parser


def evaluation_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of evaluate.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", nargs="?", help="training config, a JSON file")
    add("checkpoint", nargs="?", help="checkpoint, a .pth file")
    add("--predictions", metavar="FILE", help="predictions file, instead of config and checkpoint")
    split = "which images (default: test if the config has test_files, else validation); --side is the old name"
    add("--split", "--side", dest="split", choices=SPLITS, help=split)
    add(
        "--pulse-free", nargs="+", metavar="FILE", help="images without a pulse (default: Artefact images of the split)"
    )
    length = f"length of a page, seconds (default: as the set is described, else {NATIVE_RESOLUTION} times tsamp_s)"
    add("--page-s", type=float, help=length)
    rates = " ".join(f"{rate:g}" for rate in FALSE_PER_HOUR)
    add("--false-per-hour", nargs="+", type=float, metavar="RATE", help=f"rates of the thresholds (default: {rates})")
    limit = "rate whose threshold becomes the default threshold (default: the decisions stay the same)"
    add("--max-false-per-hour", type=float, metavar="RATE", help=limit)
    add("--keep-checkpoint", action="store_true", help="do not change the checkpoint")
    add("--output-dir", help="folder of the results (default: path_to_images, or the folder of the predictions file)")
    add("--device", choices=DEVICES, help="where to predict (default: device of the config, auto)")
    return parser


def conversion_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of convert_to_pytorch.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="Keras .h5 files, or folders that hold them")
    parser.add_argument("-o", "--output", help="file of a single result, folder of several (default: beside the input)")
    parser.add_argument("--resolution", type=int, help="height and width of the images; required for a template")
    parser.add_argument("--verify", nargs=2, metavar=("PAGES", "OUTPUTS"), help="compare with outputs of Keras")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="largest difference in softmax for --verify (default: %(default)s)",
    )
    parser.add_argument("--config", help="config.json of the TensorFlow pipeline")
    parser.add_argument("--template", nargs="?", const="", metavar="MODEL_NAME", help="a template of this network")
    parser.add_argument("--all", action="store_true", help="a template of every network")
    parser.add_argument("--seed", type=int, default=0, help="random seed of a template (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist already")
    return parser

"""Fine-tuning with few labels from a pretrained backbone and from random weights: README's table.

Command: python benchmarks/fine_tuning.py --run runs/moving-shapes      (after `hdc-keras pretrain`)
Cost: about 15 minutes on 2 cores. Stop it at any time: what is finished is not done again.

On moving shapes, with the label motion, 20 training videos a class and three seeds, each published recipe through
`hdc-keras evaluate`, its epochs reduced as the table says.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from hdc_keras.data.synthetic import MovingShapes, ensure_moving_shapes
from hdc_keras.finetuning.recipes import FINE_TUNING

EPOCHS = {"finetune-rspnet": 30, "finetune-vcop": 40, "finetune-severe": 4}
LABELS_PER_CLASS = 20


def write_motion_manifest(path: Path) -> None:
    """Moving shapes with the motion alone as their label."""
    manifest = ensure_moving_shapes(MovingShapes())
    with manifest.open(newline="") as file, path.open("w", newline="") as written:
        writer = csv.writer(written)
        writer.writerow(["path", "label", "split"])
        for row in csv.DictReader(file):
            writer.writerow([manifest.parent / row["path"], row["label_motion"], row["split"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/moving-shapes"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of every recipe, to try the path; the table's if not given")
    arguments = parser.parse_args()
    manifest = arguments.run / "motion.csv"
    write_motion_manifest(manifest)
    lines = ["| | from the pretrained backbone | from random weights |", "|---|---|---|"]
    for protocol, of_table in EPOCHS.items():
        epochs = arguments.epochs or of_table
        settings = {"finetune_epochs": epochs, "labels_per_class": LABELS_PER_CLASS, "seeds": arguments.seeds}
        sets = [argument for name, value in settings.items() for argument in ("--set", f"evaluate.{name}={value}")]
        command = [Path(sys.executable).parent / "hdc-keras", "evaluate", "--run", arguments.run, "--data", manifest]
        subprocess.run([*map(str, command), "--protocol", protocol, *sets], check=True)
        result = json.loads((arguments.run / "results" / f"{protocol}-motion.json").read_text())
        cells = []
        for network in ("metrics", "random_weights"):
            mean = result[network]["label"]["fine-tuned"]["top1"]
            spread = result["deviation"].get(network, {}).get("label", {}).get("fine-tuned", {}).get("top1")
            cells.append(f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else ""))
        lines.append(f"| `{protocol}`, {epochs} of its {FINE_TUNING[protocol].epochs} epochs | {' | '.join(cells)} |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

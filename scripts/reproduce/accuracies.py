"""Print the top-1 accuracy of trainings after their last epoch, and that of their best, as a Markdown table.

python scripts/reproduce/accuracies.py FOLDER ...
"""

import csv
import sys
from pathlib import Path

print("| training | epochs | last epoch, top-1 % | best epoch | seconds an epoch |\n| --- | --- | --- | --- | --- |")
for folder in map(Path, sys.argv[1:]):
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last, se = float(rows[-1]["eval_top1"]), float(rows[-1]["eval_top1_se"])
    best = max(float(row["eval_top1"]) for row in rows)
    seconds = sorted(float(row["seconds"]) for row in rows)[len(rows) // 2]
    print(f"| {folder.name} | {len(rows)} | {last:.2f} ± {se:.2f} | {best:.2f} | {seconds:.1f} |")

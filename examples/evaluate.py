"""An evaluation from a file: what `easd eval evaluate.yaml` does, with tables at the end."""

import sys
from pathlib import Path

from easd.evaluate.config import load_study
from easd.evaluate.engine import Evaluation
from easd.pairs.from_config import load
from easd.report.metrics import accuracy, differences, frames
from easd.runs import open_run

folder = sys.argv[1]
study = load_study(Path(__file__).with_name("evaluate.yaml"))
tasks = [spec.load() for spec in study.tasks]
# A run that was stopped continues in its folder.
Evaluation(study, load(study.base), tasks, folder).run()

tables = frames(open_run(folder))
columns = ["system", "samples", "accuracy", "accuracy_low", "accuracy_high"]
print(accuracy(tables)[columns].round(3).to_string(), "\n")
columns = ["system", "difference", "difference_low", "difference_high", "p_holm", "gained", "lost"]
print(differences(tables)[columns].round(4).to_string())

"""Data sets: their sources, prompts and graders.

`load_task` turns a hub data set, a local file or a generator into a `Task`: items with prompts,
gold answers and, where one exists, a written solution. Neither loading nor grading needs a model;
all but the `lab` tasks need the `study` extra.
"""

from easd.tasks.catalogue import TASKS, TaskInfo
from easd.tasks.load import load_task
from easd.tasks.task import Grade, Item, Task

__all__ = ["TASKS", "Grade", "Item", "Task", "TaskInfo", "load_task"]

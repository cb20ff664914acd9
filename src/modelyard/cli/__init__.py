"""The command line: one file per command, glue only. This table is all that ``yard --help`` reads."""

COMMANDS = {
    "new": "make a project from a template",
    "check": "preflight: the project file, the data, one real step, one real export",
    "up": "the whole way: data → training → bundle → registry → service",
    "train": "prepare the data and train",
    "verify-resume": "prove that a killed training goes on exactly: kill, resume, compare",
    "tune": "search for better settings; every trial is a resumable run",
    "lr-find": "try learning rates from small to large, and suggest one",
    "predict": "ask the model: an image, a row, a table, a folder",
    "status": "how far the project is, and what is running",
    "runs": "list trainings, or show one",
    "reproduce": "train a run again and say whether the same comes out",
    "models": "list versions in the registry, show one, move an alias",
    "logs": "what a training or the service printed",
    "down": "take the service down",
    "report": "write a run's report (learning curves, confusion matrix) and say where it is",
    "tensorboard": "open TensorBoard on the runs",
    "doctor": "what this machine has, and what is missing",
    "plugins": "the tables of parts: sources, tasks, backends, engines, targets, …",
    "schema": "the JSON schema of yard.toml, for editors",
    "completion": "print shell completion for bash, zsh or tcsh",
}

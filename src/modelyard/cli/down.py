"""``yard down``: take the service down; requests in flight are finished."""

import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    from modelyard.cli.output import project_arguments

    project_arguments(parser, overrides=False)


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import open_project, print_json
    from modelyard.way import open_target

    project, store = open_project(parsed)
    target, folder = open_target(project.deploy.target), store.deployment_folder(project.name)
    deployment = target.observe(folder)
    running = deployment is not None and deployment.state != "stopped"
    if running:
        target.remove(folder)
    if parsed.json:
        print_json({"name": project.name, "was_running": running})
    else:
        print(f"{project.name} is down" if running else f"{project.name} was not running")
    return 0

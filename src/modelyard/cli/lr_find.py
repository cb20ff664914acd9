"""``yard lr-find``: try learning rates from small to large, and suggest one."""

import argparse
import sys


def arguments(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    from modelyard.cli.output import project_arguments

    parser.add_argument("--low", type=float, default=1e-6, help="first rate (default: 1e-6)")
    parser.add_argument("--high", type=float, default=10.0, help="last rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100, help="rates between (default: 100)")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw the curve into FILE (.svg or .html)"
    )
    project_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    from modelyard import flow
    from modelyard.cli.output import open_project, print_json, print_pairs
    from modelyard.training.curves import check_drawing, draw_rates
    from modelyard.training.rate_finder import as_text

    if parsed.plot:
        check_drawing(parsed.plot)  # before time is spent
    project, _ = open_project(parsed)
    curve = flow.find_rate(
        project,
        low=parsed.low,
        high=parsed.high,
        steps=parsed.steps,
        say=lambda text: print(f"  {text}", file=sys.stderr),
    )
    if parsed.plot:
        draw_rates(curve, parsed.plot)
        print(f"curve: {parsed.plot}", file=sys.stderr)
    if parsed.json:
        print_json(curve)
        return 0
    print(as_text(curve))
    ended = (
        "the loss had risen again" if curve.rose else "the loss was still low; try a larger --high"
    )
    print_pairs(
        [
            ("steepest", f"{curve.steepest:g}  (where the loss falls most steeply)"),
            ("a tenth", f"{curve.tenth:g}  (of the rate with the lowest loss)"),
            ("suggested", f"{curve.suggestion:g}  (the smaller of the two)"),
            ("ended", f"at {curve.rates[-1]:.2g}: {ended}"),
            ("use it", f"yard train train.optimizer.lr={curve.suggestion:g}"),
        ]
    )
    return 0

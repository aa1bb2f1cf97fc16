"""The page of one fine-tuning."""

import shlex

from asga_jax.report import (
  evaluation_section,
  markup,
  policy_section,
)
from asga_jax.report import run as run_lib
from asga_jax.report import search_page as run_page


def make_page(run: run_lib.Run) -> str:
  """Make the page of one fine-tuning: what it reached, and how it went.

  Args:
    run: as it was read from its work directory.

  Returns:
    HTML that needs no other file, no network and no JavaScript.
  """
  at = run.policy.budget if run.policy else "in float"
  return markup.page(
    f"{run.config['model']} on {run.config['data.name']}, {at}",
    (
      _standing(run),
      markup.figures(run_page.headline(run)),
      markup.section("Warnings", markup.warning_list(run.warnings())),
      *map(evaluation_section.make_section, run.evaluations),
      policy_section.make_section(run.policy) if run.policy else "",
      markup.section("The training, step by step", run_page.step_charts(run)),
      markup.section("How to go on", _next(run)),
      markup.section("Where it comes from", run_page.origin(run)),
    ),
  )


def _standing(run: run_lib.Run) -> str:
  total = run.setting("steps")
  start = run.setting("start_from") or run.config["weights.path"]
  begun = f" It began with the weights of {start}." if start else ""
  if run.ended:
    text = f"The training in {run.path} has ended after {total} steps.{begun}"
  else:
    text = (
      f"The training in {run.path} has not ended: step {run.steps_done} of "
      f"{total}.{begun}"
    )
  return markup.paragraph(text, quiet=run.ended)


def _next(run: run_lib.Run) -> str:
  workdir = shlex.quote(str(run.path))
  report = f"python launch/report.py --workdir={workdir}"
  if not run.ended:
    return markup.paragraph(
      "The command that started the training goes on from its last checkpoint."
    ) + markup.code([report])
  return markup.paragraph(
    "Its mistakes class by class, which this page shows once it is written "
    "anew; and this page beside another run's:"
  ) + markup.code(
    [
      f"python launch/evaluate.py --workdir={workdir}"
      + " --compare=float" * (run.policy is not None),
      report,
      f"{report} --workdir=OTHER",
    ]
  )

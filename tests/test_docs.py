"""The pages in docs/ run, and what they and README.md name is there."""

import contextlib
import io
import pathlib
import re
import types

import pytest

import asga_jax
from asga_jax.runs import command

ROOT = pathlib.Path(__file__).parent.parent
# Keys of an ONNX file's metadata, after "asga_jax.".
METADATA = {"policy", "storage"}
# Pages whose blocks run, as far as a heading.
RUN = [
  ("concepts.md", None),
  ("your-own-model.md", "## A search, with your loss"),
  pytest.param("your-own-model.md", None, marks=pytest.mark.slow),
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
  r"^```python\n(?P<code>.*?)^```$(?:\n\n^```text\n(?P<shown>.*?)^```$)?",
  re.DOTALL | re.MULTILINE,
)


def _named(page):
  return page.name


@pytest.mark.parametrize(("name", "end"), RUN)
def test_every_block_runs_and_prints_what_is_shown(
  name, end, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  text = (ROOT / "docs" / name).read_text()
  text = text[: None if end is None else text.index(end)]
  blocks = list(BLOCK.finditer(text))
  assert len(blocks) == text.count("```python") > 5
  page = types.ModuleType("page")
  for block in blocks:
    line = text[: block.start("code")].count("\n")
    # Errors name the line of the page.
    code = compile("\n" * line + block["code"], name, "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      exec(code, vars(page))
    assert printed.getvalue() == (block["shown"] or ""), f"{name}:{line}"


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_links_lead_somewhere(page):
  text = page.read_text()
  headings = {
    re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  }
  links = re.findall(r"\]\(([^)\s]+)\)", text)
  assert links
  for link in links:
    if link.startswith("#"):
      assert link[1:] in headings
    elif not link.startswith("https://"):
      assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_names_are_public(page):
  modules = {"asga_jax.py"}
  text = page.read_text()
  names = set(re.findall(r"\basga_jax\.(\w+)", text))
  imported = set(re.findall(r"^from asga_jax\.(\w+)", text, re.MULTILINE))
  assert names or "```python" not in text
  others = imported | modules | METADATA | {"NAME"}
  assert names - others <= set(asga_jax.__all__)


def test_flags_are_known():
  flags = {
    flag
    for page in PAGES
    for flag in re.findall(r"--config\.[\w.]*\w(?:=\S+)?", page.read_text())
  }
  flags.discard("--config.KEY")
  assert len(flags) > 5
  command.check_flag_names(sorted(flags))


def test_an_unknown_flag_would_be_found():
  with pytest.raises(ValueError, match="stepz"):
    command.check_flag_names(["--config.search.stepz=3"])


def test_public_names_are_sorted_and_there():
  assert asga_jax.__all__ == sorted(asga_jax.__all__)
  for name in asga_jax.__all__:
    assert hasattr(asga_jax, name)

"""The contract of imports between rooms, for import-linter.

A list of what is allowed, since a room that nobody thought of must be refused.
"""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class RoomsContract(Contract):
  """Rooms import what their line allows, and each room has a line."""

  rooms = fields.ListField(subfield=fields.StringField())

  def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
    """Compare every import between rooms with the lines."""
    del verbose
    (root,) = self.session_options["root_packages"]
    allowed = {}
    for line in self.rooms:
      room, _, names = line.partition(":")
      # A star stands for all rooms above.
      above = set(allowed) if "*" in names else set()
      allowed[room.strip()] = set(names.split()) | above
    wrong = []
    for room in sorted(graph.find_children(root)):
      name = room.removeprefix(f"{root}.")
      if name not in allowed:
        wrong.append(f"{name} has no line")
        continue
      inside = [room, *sorted(graph.find_descendants(room))]
      for module in inside:
        for found in sorted(graph.find_modules_directly_imported_by(module)):
          other = found.removeprefix(f"{root}.").split(".")[0]
          if found == root or other not in allowed[name] | {name}:
            wrong.append(f"{module} imports {found}")
    return ContractCheck(kept=not wrong, metadata={"wrong": wrong})

  def render_broken_contract(self, check: ContractCheck) -> None:
    """Name each import that is not allowed."""
    for line in check.metadata["wrong"]:
      output.print_error(line)

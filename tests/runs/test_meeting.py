"""Where processes meet, and what is told of those that differ."""

import socket

import pytest

from asga_jax.runs import meeting


@pytest.mark.parametrize(
  ("where", "named"),
  [
    (("host:1", None, None), "no --processes=N and no --process=I"),
    ((None, 2, 0), "no --coordinator=HOST:PORT"),
    (("host", 2, 0), "--coordinator is 'host'; expected HOST:PORT"),
    (("host:", 2, 0), "--coordinator is 'host:'"),
    (("host:99999", 2, 0), "--coordinator is 'host:99999'"),
    (("host:1", 0, 0), "--processes is 0; expected 1 or more"),
    (("host:1", 2, 2), "--process is 2 of --processes=2; expected 0 to 1"),
    (("host:1", 2, -1), "--process is -1"),
  ],
)
def test_an_address_that_is_none_is_told(where, named):
  with pytest.raises(meeting.MeetingError, match=named):
    meeting.join(*where)


def test_a_port_in_use_is_told():
  with socket.socket() as taken:
    taken.bind(("", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(meeting.MeetingError, match=f"listen at port {port}"):
      meeting.join(f"localhost:{port}", 2, 0)


def test_every_process_that_differs_is_named():
  first = {"jax": "0.10.2", "config.bits": [2, 4], "config.seed": 0}
  older = {**first, "jax": "0.9.0"}
  lacking = {"jax": "0.10.2", "config.bits": [2, 4], "config.more": None}
  assert meeting.find_differences([first, dict(first)]) == []
  assert meeting.find_differences([first, older, first, lacking]) == [
    'process 1 has "0.9.0" for jax, and process 0 has "0.10.2"',
    "process 3 has null for config.more, and process 0 has nothing",
    "process 3 has nothing for config.seed, and process 0 has 0",
  ]


def test_one_process_is_like_itself(tmp_path):
  meeting.check_alike({"a": object()}, tmp_path)

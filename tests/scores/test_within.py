"""The cheapest policy within a budget by accuracy."""

import numpy as np
import pytest
from flax import nnx

import asga_jax
from asga_jax.cost import budget as budget_lib
from asga_jax.scores import within

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6)).astype(np.float32)
TESTED = RNG.normal(size=(4000, 6)).astype(np.float32)


class Net(nnx.Module):
  """A norm between linear layers."""

  def __init__(self, rngs):
    self.first = nnx.Linear(6, 16, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(16, rngs=rngs)
    self.middle = nnx.Linear(16, 32, rngs=rngs)
    self.inner = nnx.Linear(32, 16, rngs=rngs)
    self.last = nnx.Linear(16, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.middle(nnx.relu(self.norm(self.first(x)))))
    return self.last(nnx.relu(self.inner(x)))


@pytest.fixture(scope="module")
def net():
  made = Net(nnx.Rngs(0))
  made.eval()
  return made


@pytest.fixture(scope="module")
def labels(net):
  """Those of the network, but for one in ten."""
  found = np.argmax(np.asarray(net(TESTED)), axis=-1)
  return np.where(RNG.random(len(found)) < 0.1, (found + 1) % 4, found)


@pytest.fixture(scope="module")
def found(net):
  return asga_jax.quantize_post_training(
    net, [X[:32], X[32:]], budget="bops=3bit", progress=False
  )


def find(net, found, budget, **settings):
  given = {"batches": [X[:32], X[32:]], "inputs": [TESTED], **settings}
  return asga_jax.policy_within(found.result, net, budget=budget, **given)


def agreement(net, model):
  same = np.argmax(net(TESTED), -1) == np.argmax(model(TESTED), -1)
  return np.mean(np.asarray(same))


@pytest.mark.slow
def test_the_cheapest_that_agrees(net, found, compilations):
  at = find(net, found, "agree=97%", split="noise")
  before = len(compilations)
  tight = find(net, found, "agree=98.5%")
  # Nothing is compiled anew for other policies.
  assert len(compilations) == before
  assert agreement(net, at.model) == pytest.approx(1 - at.fall.value)
  assert at.fall.value <= 0.03
  assert at.fall.low < at.fall.value < at.fall.high
  assert tight.fall.value <= 0.015
  assert tight.policy.cost["bops"] > at.policy.cost["bops"]
  # No cheaper one that was measured would do, and few were measured.
  for cost, fall in at.measured:
    assert fall.value > 0.03 or cost >= at.policy.cost["bops"]
  assert 3 < len(at.measured) < 14
  told = at.policy.provenance
  assert told["accuracy_budget"] == "agree=97%"
  assert (told["split"], told["images_measured"]) == ("noise", 4000)
  assert told["fall"] == at.fall.value


@pytest.mark.slow
def test_the_cheapest_that_drops_little(net, found, labels):
  at = find(
    net, found, "drop=1%", inputs=[TESTED[:2500], TESTED[2500:]], labels=labels
  )
  truth = [
    np.mean(np.argmax(np.asarray(model(TESTED)), -1) == labels)
    for model in (net, at.model)
  ]
  assert at.fall.value == pytest.approx(truth[0] - truth[1])
  assert at.fall.value <= 0.01
  assert at.policy.cost["bops"] < max(cost for cost, _ in at.measured)


@pytest.mark.slow
def test_what_no_policy_reaches_is_told(net):
  coarse = asga_jax.quantize_post_training(
    net, [X], budget="bops=2bit", bits=(2,), progress=False
  )
  with pytest.raises(
    budget_lib.InfeasibleBudgetError,
    match=r"most accurate policy, of .* loses .* 4000 images of inputs; "
    r"expected a budget from agree=\d\d\.?\d*% on",
  ) as caught:
    find(net, coarse, "agree=99%")
  text = str(caught.value).split("from ")[-1].split(" on")[0]
  assert within.parse(text).kind == "agree"
  # What it names is met.
  assert find(net, coarse, text).fall.value <= within.parse(text).fall + 1e-9


@pytest.mark.slow
def test_a_wide_interval_is_told(net, found, labels, caplog):
  few = {"inputs": [TESTED[:300]], "labels": labels[:300]}
  at = find(net, found, "drop=1%", **few)
  assert at.fall.value <= 0.01 < at.fall.half_width
  assert all(
    fall.value > 0.01 or cost >= at.policy.cost["bops"]
    for cost, fall in at.measured
  )
  within_points = f"only to within {100 * at.fall.half_width:.2f} points"
  assert within_points in caplog.text
  assert f"about {at.fall.images_for(0.01)} would" in caplog.text


@pytest.mark.slow
def test_too_few_images_are_told_with_how_many_would_do(net, found, labels):
  with pytest.raises(
    ValueError, match=r"100 images of few .* about 370 images"
  ):
    find(
      net,
      found,
      "drop=1%",
      inputs=[TESTED[:100]],
      labels=labels[:100],
      split="few",
    )


@pytest.mark.slow
def test_bad_arguments(net, found, labels):
  with pytest.raises(ValueError, match="inputs has no labels"):
    find(net, found, "drop=1%")
  with pytest.raises(ValueError, match=r"shape \(3,\); expected \(4000,\)"):
    find(net, found, "drop=1%", labels=labels[:3])
  with pytest.raises(ValueError, match="inputs is empty"):
    find(net, found, "agree=99%", inputs=[])
  for text in ("drop=0%", "drop=1", "agree=100%", "drop=1%,size=3MB", "x=1%"):
    with pytest.raises(ValueError, match=r"expected drop=0\.5%"):
      find(net, found, text)


def test_the_text_reads_as_the_same():
  for text in ("drop=0.5%", "agree=99%", "agree=99.25%", "drop=12%"):
    assert str(within.parse(text)) == text
    assert within.is_accuracy(text)
  assert within.parse("drop <= 0.5 %") == within.parse("drop=0.5%")
  assert not within.is_accuracy("bops=4bit")

from asga_jax import policy as policy_lib
from asga_jax.report import policy_table


def make_policy(**layers):
  return policy_lib.Policy(
    model="tiny",
    input_shape=(32, 32, 3),
    layers=layers,
    cost={
      "bops": 172_000_000,
      "bops_convention": "all_layers_fixed_at_own_bits",
      "size_bytes": 5_812_345,
      "budget_used": 0.9964,
    },
    budget="bops=4bit",
    provenance={},
  )


def test_table_is_this():
  table = policy_table.format_table(
    make_policy(
      stem=policy_lib.LayerPolicy(8, 8, 1_000_000, 100, False),
      **{"stages/0/1/conv2": policy_lib.LayerPolicy(4, 5, 5_400_000, 9, True)},
      head=policy_lib.LayerPolicy(32, 2, 0, 100, False),
    )
  )
  assert table == "\n".join(
    [
      "layer             MACs (M)  weight  activation     BOPs",
      "--------------------------------------------------------------",
      "stem                  1.00       8           8    37.2%  fixed",
      "stages/0/1/conv2      5.40       4           5    62.8%",
      "head                  0.00      32           2     0.0%  fixed",
      "--------------------------------------------------------------",
      "total                 6.40                      0.172 G",
      (
        "budget bops=4bit: 99.64% used; size 5.812 MB;"
        " BOPs all_layers_fixed_at_own_bits"
      ),
    ]
  )


def test_a_network_without_macs():
  table = policy_table.format_table(
    make_policy(only=policy_lib.LayerPolicy(8, 8, 0, 1, True))
  )
  assert "0.0%" in table

"""Write the simulated data that the golden numbers were computed on: python -m tests.golden.make_data."""

from pathlib import Path

from mixmoe import simulate

HERE = Path(__file__).parent
SETS = {
    "sim_unbalanced": {"preset": "single", "n_subjects": 150, "n_visits": (1, 8), "rng": 20261},
    "sim_classes": {"preset": "latent_class", "n_subjects": 150, "n_visits": (2, 7), "rng": 20262},
    "sim_rows": {
        "preset": "latent_class",
        "n_subjects": 400,
        "n_visits": 1,
        "beta": [[1.0, 0.0, 2.0], [4.0, 0.0, -1.0]],
        "gamma": [[-0.9, 1.0, 0.6]],
        "rng": 20263,
    },
}

for name, arguments in SETS.items():
    data = simulate.memoe(**arguments).data
    if name == "sim_unbalanced":  # covariates of the subject, which the preset does not have
        extra = simulate.memoe("moderate", n_subjects=150, n_visits=1, rng=20264).data
        data = data.merge(extra[["id", "z1", "z2"]], on="id")
    data.round(6).to_csv(HERE / f"{name}.csv", index=False)

"""Names of parameters: those of a linear network, and of the mixed model with one expert that it equals."""


def of_one_expert(names):
    """Names that `mm.fit(..., experts=1)` gives to the parameters of a linear network."""
    return [_of_one_expert(name) for name in names]


def _of_one_expert(name):
    if name == "sigma":
        return "sigma1"
    if name.startswith(("sd(", "corr(")):
        return name.replace("(", "1(", 1)
    return f"expert1.{name}"

"""First fit: two courses of bilirubin in primary biliary cholangitis (Mayo Clinic, 312 patients, 1,945 visits).

Prints the summary and writes table.tex and trajectories.png into the working directory.
"""

import mixmoe as mm


def main():
    data = mm.datasets.load("pbcseq")
    fit = mm.fit("log(bili) ~ year | gate: age + sex | re: (1 + year | id)", data, experts=2, rng=0)
    print(fit.summary())
    fit.to_latex("table.tex")
    fit.plot().savefig("trajectories.png", dpi=150)
    print("\nWrote table.tex and trajectories.png")


if __name__ == "__main__":
    main()

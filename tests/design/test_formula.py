"""The formula language: what is read, and what every refusal says and marks."""

import contextlib
import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixmoe.design.formula import MoEFormula, Part, RandomTerm, Sequence, parse_formula, refuse_several
from mixmoe.design.formulaic_engine import parse_terms
from mixmoe.design.transforms import require_safe
from mixmoe.errors import FormulaError

INTERCEPT = (Part("1"),)


def test_every_section_is_read_in_any_order():
    first = parse_formula("y ~ time + x | gate: z | re: (1 + time | id) | vary: t")
    second = parse_formula("y ~ time + x | vary: t | re: (1 + time | id) | gate: z")
    assert first.expert == second.expert == (Part("time + x"),)
    assert first.gate == second.gate == (Part("z"),)
    assert first.random == second.random == RandomTerm("1 + time", "id")
    assert first.vary == second.vary == "t"
    assert first.response == "y"


def test_gate_is_an_intercept_unless_given():
    assert parse_formula("y ~ x").gate == INTERCEPT


@pytest.mark.parametrize(
    ("text", "random"),
    [
        ("(1 | id)", RandomTerm("1", "id")),
        ("(0|id)", RandomTerm("0", "id")),
        ("(1 + time || id)", RandomTerm("1 + time", "id", correlated=False)),
        ("( time*x | `my id` )", RandomTerm("time*x", "my id")),
        ("(first + layer[2] | id)", RandomTerm("first + layer[2]", "id")),
    ],
)
def test_random_effects(text, random):
    assert parse_formula(f"y ~ x | re: {text}").random == random


@pytest.mark.parametrize(
    ("expert", "parts"),
    [
        ("x", (Part("x"),)),
        ("-1 + x", (Part("-1 + x"),)),
        ("x + common(a + b:c)", (Part("x"), Part("a + b:c", "common", False))),
        ("common(a) + x", (Part("x"), Part("a", "common", False))),
        ("common(a)", (Part("1"), Part("a", "common", False))),
        ("common(1) + x", (Part("x", "free", False), Part("1", "common", False))),
        ("const(1 + a)", (Part("1 + a", "const", False),)),
        ("common(a) - 1 + x", (Part("- 1 + x"), Part("a", "common", False))),
        ("common(a) + x + common(b)", (Part("x"), Part("a", "common", False), Part("b", "common", False))),
    ],
)
def test_shared_and_constant_terms(expert, parts):
    assert parse_formula(f"y ~ {expert}").expert == parts


def test_constant_terms_of_the_gate():
    formula = parse_formula("y ~ z1 + const(z2) | gate: const(1) + x1 | vary: u")
    assert formula.gate == (Part("x1", "free", False), Part("1", "const", False))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("time", (Part("time"),)),
        ("1 + time", (Part("1 + time"),)),
        ("common(time)", (Part("1"), Part("time", "common", False))),
        ("x + common(log(time))", (Part("x"), Part("log(time)", "common", False))),
    ],
)
def test_terms_of_the_standard_deviation(text, parts):
    assert parse_formula(f"y ~ x | sigma: {text}").sigma == parts
    assert parse_formula("y ~ x").sigma == ()


@pytest.mark.parametrize(
    ("text", "sequence"),
    [("day", Sequence("day")), ("day / session", Sequence("day", "session")), ("`a b`", Sequence("a b"))],
)
def test_sequences(text, sequence):
    assert parse_formula(f"s ~ x | re: (transitions | id) | seq: {text}").seq == sequence


@pytest.mark.parametrize(
    "text",
    [
        "`a|b` ~ `c~d` + bs(t, df=4) | vary: log(t)",
        "y ~ I((a > 0) | (b > 0)) + poly(x, 2)",
        "y ~ C(g, Treatment('a|b')) * x",
        'y ~ C(g, Treatment("~"))',
        "y ~ (a + b)**2 | gate: 0 + C(h)",
        "y ~ {x + 1}",
        "log(y)~x|gate:-1+z|re:(0|id)",
    ],
)
def test_separators_inside_brackets_and_quotes_separate_nothing(text):
    assert isinstance(parse_formula(text), MoEFormula)


def test_a_line_break_is_a_blank():
    assert parse_formula("y ~ x\n  | gate: z").gate == (Part("z"),)


# (formula, what the message says, what the caret marks)
REFUSED = [
    ("y", "no '~'", None),
    ("~ x", "no response", "~"),
    ("y ~", "no terms after '~'", "~"),
    ("y ~ | gate: z", "no terms after '~'", "~"),
    ("y ~ x ~ z", "second '~'", "~"),
    ("y | x ~ z", "'|' stands left of '~'", "|"),
    ("y ~ x |", "stray '|'", "|"),
    ("y ~ x || gate: z", "stray '|'", "|"),
    ("y ~ x | z", "'z' has no section name", "z"),
    ("y ~ x | gate:", "gate: is empty; write gate: 1", "gate:"),
    ("y ~ x | re:  ", "re: is empty", "re:"),
    ("y ~ x | gate: z | gate: w", "given twice", "gate"),
    ("y ~ x | gates: z", "did you mean gate:", "gates"),
    ("y ~ x | z1:z2", "interactions belong inside a section", "z1"),
    ("y ~ x + (1|id)", "random effects stand in the expert part", "|"),
    ("y ~ x | gate: (1|id)", "random effects stand in gate:", "|"),
    ("y ~ x | (1|id)", "written re: (1|id)", "(1|id)"),
    ("y ~ x | re: 1 | id", "write re: (1 | id)", "id"),
    ("y ~ x | re: id", "must be one bracket", "id"),
    ("y ~ x | re: (1 + time)", "names no subjects", "1 + time"),
    ("y ~ x | re: (1|)", "names no subjects", "|"),
    ("y ~ x | re: (|id)", "no terms left of the bar", "|i"),
    ("y ~ x - typo", "'-' takes out the term 'typo', which does not stand before it", "x - typo"),
    ("y ~ x | gate: z - x", "'-' takes out the term 'x'", "z - x"),
    ("y ~ -x", "'-' takes out the term 'x'", "-x"),
    ("y ~ `1`", "a column called '1' cannot stand in a formula, where 1 is the intercept", "`1`"),
    ("y ~ x + ``", "a column called '' cannot stand in a formula", "``"),
    ("y ~ x | gate: `2`:z", "a column called '2' cannot stand", "`2`"),
    ("y ~ log(x) + `log(x)`", "names a column 'log(x)' and computes 'log(x)' as well", "`log(x)`"),
    ("y ~ t^2", "a power of 't' alone is that term itself", "t^2"),
    ("y ~ I(t^2)", "'^' inside 'I(t ^ 2)' is Python's exclusive or, not a power; write **", "^"),
    ("I(y^2) ~ t", "'^' inside 'I(y ^ 2)'", "^"),
    ("y ~ as.factor(b)", "'as.factor' is R, not Python; write C(x) for categories", "as.factor"),
    ("y ~ x | gate: as.numeric(b)", "'as.numeric' is R, not Python; convert the column", "as.numeric"),
    ("y ~ bs(t, degree=3L)", "'3L' is R, not Python; write whole numbers without the L", "3L"),
    ("y ~ d$x", "'$' is R, not Python; name the column alone", "$"),
    ("y ~ C(b, Treatment)", "names no reference; write Treatment(reference=...)", "Treatment"),
    ("y ~ x | re: (1|id) + (0+t|id)", "names 'id' more than once; write the terms in one bracket", "(1|id) + (0+t|id)"),
    (
        "y ~ x | re: (1|a) | re: (1|id)",
        "the section re: is given twice; write its terms in one, re: (... | a) + (... | b)",
        "re",
    ),
    ("y ~ x | re: (1|id:site)", "make a column of them: data['id_site'] = data['id'].astype(str)", "(1|id:site)"),
    (
        "y ~ x | re: (1|id:site) + (1|id:c)",
        "subjects must be one column, got the combinations 'id:site'",
        "(1|id:site)",
    ),
    ("y ~ x | re: (1|a/b) + (1|b:a)", "names 'b:a' more than once", "(1|a/b) + (1|b:a)"),
    ("y ~ x | re: (0|a) + (1|b)", "has a term (0 | ...) beside others, which adds no effects", "(0|a) + (1|b)"),
    ("y ~ x | re: (1|a) + b", "must be one bracket", "(1|a) + b"),
    ("y ~ x | re: (1|id|b)", "more than one bar", "|"),
    ("y ~ x | re: (1|f(id))", "must be one column, got 'f(id)'", "f(id)"),
    ("y ~ x +", "correct the marked part", "+"),
    ("y ~ x z", "missing operator", "x z"),
    ("y ~ x | gate: z + * w", "`+*`", "+ *"),
    ("y ~ x | gate: z, w", "','", ","),
    ("y ~ (x", "not closed", "("),
    ("y ~ x)", "never opened", ")"),
    ("y ~ (x]", "closed by ']'", "]"),
    ("y ~ `x", "opened but not closed", "`"),
    ("y ~ x:common(z)", "term of its own", "common(z)"),
    ("y ~ x - common(z)", "term of its own", "common(z)"),
    ("y ~ scale(common(z))", "top level", "common"),
    ("y ~ (x + const(z))", "top level", "const"),
    ("y ~ common()", "is empty", "common()"),
    ("y ~ common(x) + x", "both free and common", "common(x) + x"),
    ("y ~ common(const(x))", "inside common", "const(x)"),
    ("y ~ x | gate: common(z)", "not allowed in gate:", "common(z)"),
    ("y ~ x | vary: a + b", "one index, got 2 terms", "a + b"),
    ("y ~ x | seq: day", "no section names the subjects", "day"),
    ("y ~ x | re: (1|id) | seq: a / b / c", "more than one '/'", "c"),
    ("y ~ x | re: (1|id) | seq: f(d)", "takes column names", "f(d)"),
    ("y ~ x | sigma:", "sigma: is empty; write sigma: 1", "sigma:"),
    ("y ~ x | sigma: const(time)", "not allowed in sigma:", "const(time)"),
    ("y ~ x | sigma: 0 + time", "cannot do without its intercept", "0 + time"),
    ("y ~ x | sigma: time - 1", "cannot do without its intercept", "time - 1"),
    ("y ~ x | sigma: common(1 + time)", "which residual='common' shares", "common"),
    ("y ~ x | sigma: common(x) + x", "both free and common", "common(x) + x"),
    ("y ~ x | sigma: (1|id)", "random effects stand in sigma:", "|"),
    ("y ~ x | sigma: a | sigma: b", "given twice", "sigma"),
    ("y ~ x | sigmas: a", "did you mean sigma:", "sigmas"),
    ("y ~ .", "name the columns", "."),
    ("y ~ (a+b)**50", "too many terms; at most 9", "**50"),
    ("y + z ~ x", "got 2 terms", "y + z"),
]


@pytest.mark.parametrize(("text", "message", "marked"), REFUSED, ids=[text for text, _, _ in REFUSED])
def test_refusals_say_what_to_do_and_mark_the_place(text, message, marked):
    with pytest.raises(FormulaError, match=re.escape(message)) as caught:
        parse_formula(text)
    _, *shown = str(caught.value).split("\n    ")
    assert shown[0] == text
    if marked is not None:
        start, width = shown[1].index("^"), shown[1].count("^")
        assert text[start : start + max(width, len(marked))].startswith(marked[:width])


@pytest.mark.parametrize(
    ("effects", "terms"),
    [
        ("(1|id) + (1 + t||site)", [RandomTerm("1", "id"), RandomTerm("1 + t", "site", correlated=False)]),
        ("(1|id/site)", [RandomTerm("1", "id"), RandomTerm("1", "id", within=("site",))]),
        ("(1|a) + (last[1, t]|`b c`:d)", [RandomTerm("1", "a"), RandomTerm("last[1, t]", "b c", within=("d",))]),
        (
            "(t|a/b/c)",
            [RandomTerm("t", "a"), RandomTerm("t", "a", within=("b",)), RandomTerm("t", "a", True, ("b", "c"))],
        ),
    ],
)
def test_several_groupings_are_a_term_each(effects, terms):
    found = parse_formula(f"y ~ x | re: {effects}")
    assert [found.random, *found.further] == terms


@pytest.mark.parametrize("effects", ["(1|id) + (1|site)", "(1|site/id)"])
def test_experts_refuse_several_groupings(effects):
    text = f"y ~ x | re: {effects} | gate: z"
    with pytest.raises(FormulaError, match="more than one grouping factor; experts take one") as caught:
        refuse_several(parse_formula(text))
    _, *shown = str(caught.value).split("\n    ")
    assert shown[1].index("^") == text.index("(1")
    assert shown[1].count("^") == len(effects)


@pytest.mark.parametrize(("formula", "message"), [(3, "must be text .* got int"), ("  ", "is empty")])
def test_what_is_no_formula(formula, message):
    with pytest.raises(FormulaError, match=message):
        parse_formula(formula)


@given(st.text(alphabet="y~x|()[]{}`'+-*:^. 01regatevycmo", max_size=40))
def test_any_text_is_read_or_refused_with_our_error(text):
    with contextlib.suppress(FormulaError):
        assert parse_formula(text).response


@given(st.lists(st.sampled_from(["x", "log(z)", "a:b", "C(g)", "bs(t, df=4)", "`my col`"]), min_size=1, unique=True))
def test_terms_survive_next_to_shared_ones(terms):
    parts = parse_formula(f"y ~ {' + '.join(terms)} + common(shared)").expert
    assert parts == (Part(" + ".join(terms)), Part("shared", "common", False))


SAFE = [
    "y ~ log(x) + bs(t, df=3) + C(g, contr.treatment(base='a')) + np.log1p(x)",
    "y ~ I(x**2) + `a b`:log(`c d`) | re: (layer[2] + first | id)",
    "y ~ `{a}` + C(x, levels=[1, 2])",
]
UNSAFE = [
    ("y ~ {x}", "braces"),
    ("y ~ __import__('os')", "__import__"),
    ("y ~ np.load(x)", "np.load"),
    ("y ~ log(x.values)", "x.values"),
    ("y ~ I(x.__class__)", "__class__"),
    ("y ~ I(9**x)", "exponent"),
    ("y ~ I(x + 'a')", "text"),
    ("y ~ I(x << 3)", "operator"),
    ("y ~ I((lambda: 1)())", "lambda"),
    ("y ~ I([c for c in x])", "is a program"),
    ("y ~ C(**x)", "unpacks"),
    ("y ~ I(x[a:b])", "index must be a number"),
    ("y ~ I(__name__)", "__name__"),
    ("y ~ x | gate: open(z)", "open"),
    ("y ~ x | vary: eval(z)", "eval"),
    ("y ~ x | sigma: eval(z)", "eval"),
    ("eval(y) ~ x", "eval"),
    ("y ~ common(eval(x))", "eval"),
    ("y ~ x | re: (eval(x) | id)", "eval"),
]


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("I(9**9**9**9 * x)", r"'9 \*\* 9 \*\* 9 \*\* 9' in .* is a number too large to be computed with"),
        ("I(10**10**8 * x)", "a number too large"),
        ("I(((10**300)**300)**300 * x)", "a number too large"),
        ("C(x + 2**-4000)", "a number too large"),
        ("I(x * len('a' * 10**10))", "repeats what stands in quotes or brackets, and is no arithmetic"),
        ("I(x * max([1, 2] * 10**9))", "repeats what stands in quotes or brackets"),
        ("I(x * len('%10000000000d' % 1))", "repeats what stands in quotes or brackets"),
        ("I(x * sum(range(10**10)))", "calls range of Python; formulas know abs, "),
        ("I(x + pow(9, 10**9))", "calls pow of Python"),
        ("I(x + sum(y for y in x))", "is a program, not a formula"),
        ("I(x + len(f'{1:10000000000}'))", "is a program, not a formula"),
        ("I(x + (1 << 10**11))", "is a number too large to be computed with"),
        ("I(x + int(9)**10**9)", "is a number too large to be computed with"),
        ("I(x + (len('a')**300)**300)", "is a number too large to be computed with"),
        ("I(x + np.zeros(10**10).sum())", "makes more than 1000000 values"),
        ("I(x + np.ones((10**5, 10**5)).sum())", "makes more than 1000000 values"),
        ("np.tile(x, 10**9)", "makes more than 1000000 values"),
        ("I(len('a'.zfill(10**10)) * x)", "makes more than 1000000 values"),
        ("bs(x, df=5 * 10**6)", "asks for 5000000 columns"),
        ("poly(x, degree=int(1e7))", "asks for 10000000 columns"),
        ("bs(x, df=5000)", "asks for 5000 columns; at most 2000 make sense"),
        ("poly(x, 100000)", "asks for 100000 columns"),
        ("hashed(g, levels=10000000)", "asks for 10000000 columns"),
        ("s(x, k=9999)", "asks for 9999 columns"),
    ],
)
def test_numbers_that_would_take_hours_are_refused(term, message):
    started = time.process_time()
    for formula in (f"y ~ {term}", f"y ~ x | gate: {term} | re: (1 | id)", f"y ~ x | re: (1 + {term} | id)"):
        with pytest.raises(FormulaError, match=message):
            parse_formula(formula)
    assert time.process_time() - started < 1.0
    whole = "I(x * 10**18) + I(2**-3 * x) + bs(x - 3000, df=50, knots=np.array([9000, 2000000]))"
    small = (
        "I(x / (2 + 3)**2) + I(np.exp(1)**2 * x) + np.minimum(x, 10**9) + I(x.rolling(10**9).mean()) + I(x % 2 << 1)"
    )
    assert parse_formula(f"y ~ {whole} + {small} + C(g, contr.treatment(base=2000000))").response == "y"


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("C(g, sum)", "gives 'sum' for contrasts; contrasts are Sum, Helmert"),
        ("C(g, 'b')", r"gives \"'b'\" for contrasts; .* Treatment\(reference='b'\)"),
        ("C(g, 1)", r"gives '1' for contrasts; .* contr.treatment\(base=1\)"),
        ("C(g, contr.Sum)", "gives 'contr.Sum' for contrasts"),
        ("C(g, contr.simple())", r"gives 'contr.simple\(\)' for contrasts"),
        ("C(g, SUM)", "gives 'SUM' for contrasts"),
        ("C(g, treatment(base='b'))", "for contrasts; contrasts are"),
        ("C(g, contrasts=[1, 2])", r"gives '\[1, 2\]' for contrasts"),
        ("C(g, ref='b')", "has no argument 'ref'; contrasts are Sum"),
        ("C(g, base='b')", "has no argument 'base'; contrasts are Sum"),
        ("C(g, Treatment)", "names no reference"),
    ],
)
def test_contrasts_that_are_none(term, message):
    for formula in (f"y ~ {term}", f"y ~ x | gate: x + {term} | vary: u", f"y ~ x | re: ({term} | id)"):
        with pytest.raises(FormulaError, match=message):
            parse_formula(formula)


@pytest.mark.parametrize("text", SAFE)
def test_common_transforms_are_safe(text):
    require_safe(parse_formula(text))


@pytest.mark.parametrize(("text", "message"), UNSAFE, ids=[text for text, _ in UNSAFE])
def test_foreign_code_is_refused(text, message):
    with pytest.raises(FormulaError, match=re.escape(message)):
        require_safe(parse_formula(text))


SUMS = ["(" + "+".join(f"{name}{i}" for i in range(50)) + ")" for name in "abc"]


@pytest.mark.parametrize(
    "text",
    [
        "*".join(f"x{i}" for i in range(20)),
        "*".join(f"x{i}" for i in range(11)),
        "(a+b+c+d+e+f+g+h+i+j+k+l)**9",
        ":".join(SUMS),
        "/".join(SUMS) + "*" + SUMS[0],
        "+".join(f"x{i}" for i in range(2001)),
    ],
)
def test_products_are_bounded_before_they_are_expanded(text):
    started = time.process_time()
    for formula in (f"y ~ {text}", f"y ~ x | gate: {text} | re: (1 | id)", f"y ~ x | re: ({text} | id)"):
        with pytest.raises(
            FormulaError, match="expands to more than 2000 terms; write out the products that are meant"
        ):
            parse_formula(formula)
    assert time.process_time() - started < 10.0  # hours without the bound


def test_a_high_power_of_a_sum_is_all_its_products():
    terms = [str(term) for term in parse_terms("(a + b + c + d)**9", intercept=False)]
    expected = [":".join(chosen) for k in range(1, 5) for chosen in itertools.combinations("abcd", k)]
    assert terms == expected
    squares = [str(term) for term in parse_terms("(a + b + c)**2 - a:b", intercept=False)]
    assert squares == ["a", "b", "c", "a:c", "b:c"]

"""Answers that look alike and are not, and answers that look different and are the same."""

import random

import pytest
import sympy

from stepsal.generation.mathematics import compare_math

CASES = []


def box(expected, right=(), wrong=()):
    """Answers in a box: those that are right for the expected one, and those that are not."""
    text(expected, [rf"\boxed{{{each}}}" for each in right], [rf"\boxed{{{each}}}" for each in wrong])


def text(expected, right=(), wrong=()):
    """Whole summaries, likewise."""
    CASES.extend((expected, each, True) for each in right)
    CASES.extend((expected, each, False) for each in wrong)


box(
    r"\begin{pmatrix}-2\\1\end{pmatrix}",
    [r"\begin{pmatrix} -2 \\ 1 \end{pmatrix}", r"\begin{pmatrix} -2 \\[4pt] 1 \end{pmatrix}"],
)
box(
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    [r"\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}"],
    [r"\begin{pmatrix}1 & 3 \\ 2 & 4\end{pmatrix}"],
)
box(
    r"\begin{pmatrix}2 \\ 3\end{pmatrix}", [], [r"\begin{bmatrix}3 \\ 2\end{bmatrix}", r"\begin{pmatrix}3\end{pmatrix}"]
)
for a, b in [
    ("Paris", "Pairs"),
    ("No", "on"),
    ("listen", "silent"),
    ("Mary", "Army"),
    ("left", "felt"),
    ("DNA", "AND"),
    ("HTH", "THH"),
    ("RRL", "RLR"),
    ("BAC", "ABC"),
    ("red and blue", "blue and red"),
    ("NaCl", "ClNa"),
    (r"\angle ABC", r"\angle BAC"),
]:
    box(a, [a], [b])
for a, b in [
    ("x + 3", "x + 3 y"),
    ("x^2 + 2 x", "x^2+2"),
    ("2 + 3 x", "5"),
    ("10 - 2 n", "8"),
    ("a + 2 b", "a + 2"),
    ("1 + 2 i", "3"),
    ("7", "4 + 3 i"),
    ("12 a b", "12"),
    ("3", "3 e"),
    ("3", "3 log"),
    ("2 a", "2 b"),
    ("2 sqrt", "2"),
]:
    box(a, [], [b])
for a, b in [
    ("3 boys", "3 girls"),
    ("5 wins", "5 losses"),
    ("5 miles north", "5 miles south"),
    ("3 left", "3 right"),
    ("44 BC", "44 AD"),
    ("2 heads", "2 tails"),
    ("8 protons", "8 neutrons"),
    ("5 apples", "5 oranges"),
]:
    box(a, [a, a.split()[0]], [b])
text("5 m", ["The length is 5 m.", "The length is 5."], ["The length is 5 cm.", "The length is 5 km."])
text("5 hours", [], ["It takes 5 minutes."])
text("20 °C", ["It is 20 °C."], ["It is 20 °F."])
for a, b in [
    ("2024-03-05", "2024-05-03"),
    ("2023-12-25", "1986"),
    ("1945-09-02", "1934"),
    ("3-2", "1"),
    ("2-1", "3-2"),
    ("21-14", "7"),
    ("10-15", "-5"),
    ("555-1234", "-679"),
    ("1/2/2023", "1/4046"),
]:
    box(a, [a], [b])
text("2024-03-05", ["The date is 2024-03-05."], ["The date is 2024-05-03."])
for a, b in [("10:30", "20:60"), ("10:30", "1:3"), ("4:20", r"\frac15"), ("12:30", "0.4"), ("1:2:3", "1:3:2")]:
    box(a, [a], [b])
box("6:00 PM", ["6 PM", "6:00 p.m.", "6:00"], ["6:00 AM", "7 PM"])
box("5 pm", ["5:00 pm"])
for a, b in [
    ("1101_2", "1101_3"),
    ("1101_{two}", "1101_{three}"),
    ("43_6", "43_7"),
    ("210_{3}", "210_{4}"),
    ("0x1F", "0x2F"),
    ("0b101", "0b111"),
    ("1A", "A1"),
    ("12A", "A12"),
    ("BEEF", "FEEB"),
]:
    box(a, [a], [b])
box("1101_2", ["1101", r"1101_{\text{two}}", "1101_{2}"])
box("1 2 3", ["1 2 3", "1,2,3", "1, 2, 3"], ["3 2 1", "6", "123"])
box("1 2", [], ["2 1"])
box("12", [], ["1 2"])
box("123", [], ["12 3"])
for b in ["x^2 = 5", "2x = 5", "-x = 5", r"\sqrt{x} = 5", "1/x = 5", "n! = 5", "x + 2 = 5"]:
    box("5", [], [b])
box("5", ["AB = 5", "f(2)=5", "2+3=5", "x=5", "5 = n", r"\angle A = 5^\circ", r"P(X) = 5", r"|AB| = 5", r"x_1 = 5"])
for a, b in [
    ("(1,2)", r"\{1,2\}"),
    ("[1,1]", "1"),
    ("x<2 or x>3", "x<2 and x>3"),
    ("True, False", "False, True"),
    ("yes, no", "no, yes"),
    ("knight, knave", "knave, knight"),
    ("0.333...", "0.333"),
]:
    box(a, [a], [b])
box("A", [], ["A. not correct, B is", "A: false, B: true", "A. C"])
text(
    "A",
    ["The answer is A.", "**A**"],
    ["The answer is not A but C.", "A: wrong. B: right. Answer: B", "A triangle has three sides, so (C)."],
)
text("I", [], ["I think it is B"])
text("C", ["A triangle has three sides, so (C).", "I think it is C.", "The answer is not A but C."])
text(
    "B",
    [
        "A is wrong. B is right.",
        "Answer: **B) Paris**",
        "The correct option is **B) Paris**.",
        "答案是B。",
        "答案：B",
        "故选：B。",
        "选B",
        "The answer is **(B)**",
        "Answer: $\\boxed{B}$",
        "So the correct choice is B: Paris",
        "Therefore, option B is correct.",
    ],
)
box("B", ["B - Paris", "B Paris", "**B**"])
box("D", [r"D \text{ (4)}", "D = 4"])
box("C", ["(C) Both A and B"])
box("A. Paris", ["A"])
box("(A) 5", ["A", "5", "(A) 5"], ["B"])
box("A) 5", ["A"])
box("AC", ["A, C", "A and C"], ["AB"])
box("ABD", ["A, B, D"])
for a, b in [
    ("5 mW", "5 MW"),
    ("5 MHz", "5 mHz"),
    ("5 Mb", "5 MB"),
    ("5 g", "5 G"),
    ("£5", r"\$5"),
    ("5 cm", "5 %"),
    ("5 kg m/s", "5 kg"),
]:
    box(a, [a], [b])
box(
    "5",
    [
        r"\textcolor{red}{5}",
        r"\color{red}{5}",
        r"\underline{5}",
        r"\large 5",
        r"\mathbf 5",
        r"\bf 5",
        r"5 \checkmark",
        r"\text{The answer is }5",
        "5 = n",
        "5€",
        "5 €",
        "USD 5",
    ],
)
box(
    "7",
    [
        r"7\\",
        r"\text{\$}7",
        r"7^{\text{th}}",
        r"7\deg",
        r"7\ \Omega",
        r"7\,\text{m}\,\text{s}^{-2}",
        r"7\ \frac{\text{m}}{\text{s}}",
        r"7\text{ kg}\cdot\text{m}^2",
        "₹7",
        "7 ℃",
    ],
)
box("2", [r"\approx 2"])
box("3.14", [r"\approx 3.14"])
box("1/2", [r"\nicefrac{1}{2}"])
box("10", [r"\binom52", r"\binom{5}{2}"])
box(r"0.\overline{3}", [r"\frac13"])
box(r"\emptyset", [r"\varnothing"])
box("ln 2", [r"\ln 2"])
box(r"\ln 2", ["ln(2)"])
box("log_2 8", ["3"])
box("sin x", [r"\sin x"])
box("x**2", ["x^2"])
box("2 1/4 cups", ["2.25"])
box("3x10^8", [r"3\times10^8"])
box("3×10⁸", ["3e8"])
box("10⁻³", ["0.001"])
box("5", ["5元", "5个", "5。", "５"])
box("12", ["12厘米"])
box("3,4", ["3、4"])
box("3", ["x＝3"])
box("(1,2)", ["（1，2）"])
text("42", ["答案是42。", "最终答案：42", "答案是 $42$。"], ["答案是43。"])
text("7", ["<answer>7</answer>"], ["<answer>8</answer>"])
text("Paris", ["The answer is Paris."], ["The answer is London."])
text("Yes", ["The answer is yes."], ["The answer is no."])
text("(1,2)", ["The point is (1, 2)."], ["The point is (2, 1)."])
text("1,2,3", ["The answers are 1, 2, and 3."])
text("2x+1", ["The answer is 2x+1."])
text("3:4", ["The ratio is 3:4."])
text("2:30", ["It is 2:30."])
text("3,4", ["x = 3 or x = 4."])
text(r"\pi", ["The answer is π."])
text("1000000", ["The answer is 1 million."])
text("3e8", ["The speed is 3e8 m/s."])
text(
    "5",
    ["The answer is 5.", "So x = 5", "The sum of 2 and 3 is 5."],
    ["The answer is not 5.", "It is less than 5.", "At least 5 are needed."],
)
text(
    "5",
    [
        r"The answer is $\boxed{5}$. You can write \boxed{...} around it.",
        r"I put it in `\boxed{}`: 5",
        r"\bbox[5px,border:2px solid red]{5}",
        r"\framebox[2cm]{5}",
        r"\Boxed{5}",
    ],
)


for expected in ("x-y", "p - q", "a - b"):
    box(
        expected,
        [expected],
        [expected.replace("-", ""), expected.replace("-", ","), "-".join(expected.split("-")[::-1])],
    )
box("A_n", ["A_n"], ["A"])
box("B_2", ["B_{2}"], ["B", "B_1"])
box("10_{two}", ["10_2"], ["11_2"])
box("x-axis", ["x axis"], ["y-axis"])


@pytest.mark.parametrize(("expected", "summary", "right"), CASES)
def test_an_answer_is_what_it_says_and_not_what_its_letters_multiply_to(expected, summary, right):
    assert compare_math(expected, summary).right is right


def test_of_random_expressions_those_are_right_that_are_equal():
    """As sympy has it, which reads no text here."""
    draw = random.Random(0)
    x, y, n = sympy.symbols("x y n")

    def expression():
        a, b, c = *draw.sample([x, y, n], 2), draw.randint(2, 9)
        return draw.choice([a - b, a + b, a * b, c * a, a**2, c - a, a / c, a - c, c * a - b, a * b - c, a**c])

    for _ in range(80):
        one, other = expression(), expression()
        finding = compare_math(sympy.latex(one), rf"\boxed{{{sympy.latex(other)}}}")
        assert finding.right == (sympy.simplify(one - other) == 0), (one, other)

"""The sample formulas: what is written, by whom, and how it reaches a file."""

from __future__ import annotations

from dataclasses import dataclass

from hmer.writing.layout import Hand

Color = tuple[int, int, int]
"""Blue, green, red, each 0..255."""


@dataclass(frozen=True)
class Look:
    """How ink becomes a picture."""

    height: float = 48.0  # pixels of a typical stroke
    pen: int = 4  # pixels
    margin: float = 16.0  # pixels
    ink: Color = (0, 0, 0)
    paper: Color = (255, 255, 255)
    shade: float = 0.0  # how much darker the paper is at its far corner, 0..1
    photo: bool = False  # JPEG with a camera's noise, else PNG
    resolution: float = 3.0  # device units of the tablet for 1/100 of a digit's height

    @property
    def plain(self) -> bool:
        """Whether it is simply black on white."""
        return self.ink == (0, 0, 0) and self.paper == (255, 255, 255) and not self.photo

    @property
    def suffix(self) -> str:
        """The picture's file name extension."""
        return ".jpg" if self.photo else ".png"


@dataclass(frozen=True)
class Sample:
    """One formula to write; ``seed`` decides everything that is left to chance."""

    name: str
    latex: str
    hand: Hand
    look: Look
    seed: int = 1


ROUND = Hand(spacing=22, slant=0.05)
SLANTED = Hand(wobble=2.0, slant=0.22, spacing=20, forms={"x": 1, "z": 1, "y": 1, "\\sum": 1})
WIDE = Hand(wander=3.5, spacing=32, slant=0.0, tilt=0.012, forms={"x": 1, "1": 1, "\\sqrt": 1})
QUICK = Hand(wobble=2.4, wander=3.5, sizes=0.07, spacing=18, slant=0.12, forms={"7": 1, "z": 1})
UPRIGHT = Hand(wobble=1.2, slant=-0.03, spacing=26, tilt=-0.01, forms={"x": 1, "1": 1, "k": 1})

SCREEN = Look()
LARGE = Look(height=90, pen=7, margin=30, resolution=8)
SMALL = Look(height=30, pen=2, margin=9, resolution=1)
FINE = Look(height=60, pen=3, margin=24, resolution=5)
MARKER = Look(height=48, pen=6, margin=14, resolution=2)
PHOTO = Look(
    56, 4, 36, ink=(58, 44, 40), paper=(224, 232, 236), shade=0.14, photo=True, resolution=4
)
BLUE = Look(42, 3, 26, ink=(120, 50, 30), paper=(238, 244, 246), photo=True, resolution=6)
GREY = Look(50, 4, 30, ink=(50, 50, 50), paper=(205, 205, 205), shade=0.08, photo=True)
BOARD = Look(52, 4, 24, ink=(235, 240, 238), paper=(52, 60, 40), resolution=2)

SAMPLES = (
    Sample("pythagoras", r"x^2+y^2=z^2", ROUND, SCREEN),
    Sample("average", r"\frac{a+b}{2}", UPRIGHT, LARGE),
    Sample("discriminant", r"\sqrt{b^2-4ac}", WIDE, SCREEN),
    Sample("square_sum", r"\sum_{i=1}^{n}i^2", ROUND, FINE),
    Sample("quadratic", r"x=\frac{-b+\sqrt{b^2-4ac}}{2a}", UPRIGHT, PHOTO),
    Sample("integral", r"\int_0^1x^2dx", ROUND, SCREEN),
    Sample("product", r"(x+1)(x-1)=x^2-1", WIDE, SCREEN),
    Sample("limit", r"\lim_{x\rightarrow0}\frac{\sin x}{x}=1", UPRIGHT, FINE),
    Sample("trigonometry", r"\sin^2\theta+\cos^2\theta=1", SLANTED, BLUE),
    Sample("euler", r"e^{i\pi}+1=0", ROUND, LARGE),
    Sample("sequence", r"a_{n+1}=a_n+2", UPRIGHT, SMALL),
    Sample("series", r"\sum_{k=0}^{\infty}\frac{1}{2^k}=2", WIDE, SCREEN),
    Sample("circle", r"A=\pi r^2", SLANTED, GREY),
    Sample("nested_roots", r"\sqrt{x+\sqrt{y}}", ROUND, SCREEN),
    Sample("cube_root", r"\sqrt[3]{8}=2", WIDE, FINE),
    Sample("addition", r"12+34=46", QUICK, MARKER),
    Sample("polynomial", r"f(x)=x^3-3x+2", ROUND, PHOTO),
    Sample("fractions", r"\frac12+\frac13=\frac56", SLANTED, SCREEN),
    Sample("greek", r"\alpha+\beta=\gamma", UPRIGHT, BOARD),
    Sample("binomial", r"(a+b)^2=a^2+2ab+b^2", QUICK, FINE),
    Sample("tangent", r"\tan\alpha=\frac{\sin\alpha}{\cos\alpha}", UPRIGHT, SCREEN),
    Sample("continued", r"1+\frac{1}{1+\frac{1}{x}}", SLANTED, GREY),
    Sample("order", r"x_1\leq x_2", ROUND, SMALL),
    Sample("brackets", r"\left(\frac{x}{y}\right)^n=\frac{x^n}{y^n}", WIDE, SCREEN),
)

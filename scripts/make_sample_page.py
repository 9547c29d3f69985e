#!/usr/bin/env python3
"""Draw a document page that a layout detector can work on: the sample image of the README, the demo and the tests.

A page has a running header, a title, headings, paragraphs in one or two columns, a list, a table, a figure, a
photograph-like picture, captions, a formula, a footnote and a page number. All its text and numbers are invented.
The fonts are the ones matplotlib ships (STIX and DejaVu). The same seed gives the same page with the same Pillow.

    python scripts/make_sample_page.py [--seed N] [--height PIXELS] OUTPUT.png

Needs Pillow and matplotlib: pip install "dhead-trt[image,plot]".
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 1240, 1754  # A4 at 150 dpi
INK, GREY, PAPER = (22, 22, 26), (96, 96, 102), (255, 255, 255)
FONTS = {
    "serif": ("STIXGeneral.ttf", "STIXGeneralBol.ttf", "STIXGeneralItalic.ttf"),
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"),
}
TITLES = (
    "Thirty Years of Water Levels on the Lower Ember: What the Gauges Saw",
    "How Street Trees Cool a Town: Measurements from Four Summers",
    "Night Trains Between Small Cities: A Timetable Study",
    "Bread Wheat on Thin Soils: Field Notes and Yields",
)
HEADINGS = ("Introduction", "Study area", "Data and methods", "Results", "Discussion", "Limits of the data", "Outlook")
SENTENCES = (
    "The stations were chosen so that each reach of the valley is seen by at least two instruments of different age.",
    "Readings were taken every ten minutes and averaged over the hour before they were stored.",
    "Gaps of less than three hours were filled by linear interpolation; longer gaps were left open and counted.",
    "In dry years the differences between neighbouring sites grew to almost twice their usual size.",
    "We compared every series with the notes of the observers, which often explained what the numbers could not.",
    "A change of instrument shows in the record as a small step, and for most sites the date of that step is known.",
    "The spring maximum arrives about nine days earlier than it did in the first decade of the record.",
    "None of the simple models that we tried reproduces both the height and the timing of the peak.",
    "Shaded sites warm more slowly in the morning and stay warm longer after sunset.",
    "The cost of one more station is small beside the cost of a season without data.",
    "Where two sources disagreed we kept the one that had been calibrated more recently.",
    "Weekends and holidays stand out clearly, although nobody had expected them to matter here.",
    "Most of the variation between years is explained by the length of the snow cover in the upper valley.",
    "The uncertainty given in the text is one standard deviation unless stated otherwise.",
    "For the three smallest catchments the sample is too short to say anything about trends.",
    "The observers changed several times, and with them the hour at which the paper charts were replaced.",
    "Later work should repeat the survey with a denser network around the confluence.",
    "The method is simple enough to be run on a laptop in a few minutes.",
    "All values were checked by two people who did not know the expected result.",
    "This agrees with what older inhabitants reported, and with the marks on the bridge at Halden.",
    "After the correction the residuals show no dependence on temperature or on the time of day.",
    "The record of the mill, kept since the winter of 1931, is the longest and by far the most complete.",
)
BULLETS = (
    "one sensor per reach, checked twice a year;",
    "hourly means, with open gaps longer than three hours;",
    "calibration against the reference station in March and October;",
    "a written log of every visit and every repair;",
    "free access to the raw series for anybody who asks.",
)
CAPTIONS = (
    "Figure 1: Levels by season, in metres above the local datum, from 1990 to 2020.",
    "Table 1: Summary of the longest series. All values in metres.",
    "Figure 2: The valley seen from the north in late summer.",
)
ROWS = ("Halden", "Upper mill", "Confluence", "Old bridge", "Weir", "Harbour", "Quarry road")


@dataclass
class Page:
    """A page being filled column by column; y is where the next thing of the current column goes."""

    image: Image.Image
    rng: random.Random
    face: str
    body: int
    y: float = 0
    x: float = 0
    width: float = 0
    deck: list[str] = field(default_factory=list)

    def font(self, size: float, style: int = 0) -> ImageFont.FreeTypeFont:
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        return ImageFont.truetype(str(folder / FONTS[self.face][style]), round(size))

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def text(
        self,
        text: str,
        size: float,
        *,
        style: int = 0,
        align: str = "justify",
        fill: tuple[int, int, int] = INK,
        indent: float = 0,
        gap: float = 0.6,
        leading: float = 1.28,
    ) -> None:
        """Sets `text` into the current column, broken into lines, and moves y below it."""
        font, draw, width = self.font(size, style), self.draw, self.width - indent
        lines: list[list[str]] = [[]]
        for word in text.split():
            if lines[-1] and font.getlength(" ".join([*lines[-1], word])) > width:
                lines.append([])
            lines[-1].append(word)
        for i, words in enumerate(lines):
            line = " ".join(words)
            x, space = self.x + indent, font.getlength(" ")
            if align == "center":
                x += (width - font.getlength(line)) / 2
            elif align == "justify" and i + 1 < len(lines) and len(words) > 1:
                space = (width - sum(map(font.getlength, words))) / (len(words) - 1)
            for word in words:
                draw.text((x, self.y), word, fill=fill, font=font)
                x += font.getlength(word) + space
            self.y += size * leading
        self.y += size * gap

    def paragraph(self, sentences: int) -> None:
        if len(self.deck) < sentences:  # every sentence once before any comes again
            self.deck = self.rng.sample(SENTENCES, len(SENTENCES))
        chosen, self.deck = self.deck[:sentences], self.deck[sentences:]
        self.text(" ".join(chosen), self.body)

    def heading(self, number: int, name: str) -> None:
        self.y += self.body * 0.5
        self.text(f"{number}  {name}", self.body * 1.25, style=1, align="left", gap=0.35)

    def bullets(self, count: int) -> None:
        for line in self.rng.sample(BULLETS, count):
            self.draw.text((self.x + self.body * 0.4, self.y), "•", fill=INK, font=self.font(self.body))
            self.text(line, self.body, indent=self.body * 1.4, align="left", gap=0.25)
        self.y += self.body * 0.5

    def caption(self, text: str) -> None:
        self.text(text, self.body * 0.86, align="left", gap=1.2)

    def table(self, rows: int) -> None:
        font, bold, draw = self.font(self.body * 0.92), self.font(self.body * 0.92, 1), self.draw
        header = ("Station", "Mean", "Min", "Max", "Years")
        step, left = self.body * 1.6, self.x + 4
        edges = [left, *(left + self.width * f for f in (0.46, 0.60, 0.74, 0.88))]
        names = self.rng.sample(ROWS, rows)
        body = []
        for name in names:
            mean, low, high = self.rng.uniform(2, 5), self.rng.uniform(0.3, 1.8), self.rng.uniform(5.4, 9.5)
            body.append((name, f"{mean:.2f}", f"{low:.2f}", f"{high:.2f}", str(self.rng.randint(8, 30))))
        draw.line((self.x, self.y, self.x + self.width, self.y), fill=INK, width=3)
        for i, row in enumerate((header, *body)):
            for x, cell in zip(edges, row, strict=True):
                draw.text((x, self.y + step * 0.18), cell, fill=INK, font=bold if i == 0 else font)
            self.y += step
            weight = 2 if i in (0, rows) else 1
            draw.line(
                (self.x, self.y, self.x + self.width, self.y),
                fill=INK if weight == 2 else (190, 190, 195),
                width=weight,
            )
        self.y += self.body * 0.7

    def formula(self) -> None:
        draw = self.draw
        line = self.rng.choice(
            ("h(t) = h₀ + a·t + b·cos(ωt + φ) + ε", "Q = k · (h − h₀)ⁿ + ε", "ΔT = α·S − β·v + γ·log(A)")
        )
        self.y += self.body * 0.5
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        font = ImageFont.truetype(str(folder / "DejaVuSerif-Italic.ttf"), round(self.body * 1.05))
        draw.text((self.x + (self.width - font.getlength(line)) / 2, self.y), line, fill=INK, font=font)
        draw.text((self.x + self.width - self.body * 1.6, self.y), "(1)", fill=INK, font=self.font(self.body))
        self.y += self.body * 2.6

    def chart(self, height: int) -> None:
        """A line or bar chart with axes, ticks, grid and a legend."""
        draw, small = self.draw, self.font(self.body * 0.72)
        colours = [(31, 96, 168), (214, 104, 32), (48, 140, 72)]
        left, right, top, bottom = self.x + 52, self.x + self.width - 12, self.y + 8, self.y + height - 46
        for i in range(6):
            y = bottom - (bottom - top) * i / 5
            draw.line((left, y, right, y), fill=(222, 222, 226), width=1)
            draw.text((left - 8, y), f"{i * 2}", fill=INK, font=small, anchor="rm")
        bars = self.rng.random() < 0.4
        for k, colour in enumerate(colours):
            n = 9 if bars else 60
            base, swing, phase = self.rng.uniform(0.3, 0.6), self.rng.uniform(0.1, 0.3), self.rng.uniform(0, 6)
            values = [base + swing * math.sin(phase + 7 * i / n) + self.rng.gauss(0, 0.02) for i in range(n)]
            xs = [left + (right - left) * (i + (0.5 if bars else 0)) / (n if bars else n - 1) for i in range(n)]
            ys = [bottom - (bottom - top) * min(max(v, 0.03), 0.97) for v in values]
            if bars:
                w = (right - left) / n / 4
                for x, y in zip(xs, ys, strict=True):
                    draw.rectangle((x + (k - 1.5) * w, y, x + (k - 0.5) * w - 1, bottom), fill=colour)
            else:
                draw.line(list(zip(xs, ys, strict=True)), fill=colour, width=3, joint="curve")
            lx = left + 20 + k * (right - left) / 3.2
            draw.line((lx, top + 12, lx + 26, top + 12), fill=colour, width=4)
            draw.text((lx + 32, top + 12), ("spring", "summer", "autumn")[k], fill=INK, font=small, anchor="lm")
        draw.rectangle((left, top, right, bottom), outline=INK, width=2)
        for i in range(7):
            x = left + (right - left) * i / 6
            draw.line((x, bottom, x, bottom + 6), fill=INK, width=2)
            draw.text((x, bottom + 10), str(1990 + 5 * i), fill=INK, font=small, anchor="ma")
        self.y += height

    def photo(self, height: int) -> None:
        """A picture that looks like a photograph: sky, hills, a river, some grain."""
        w = round(self.width)
        noise = np.random.default_rng(self.rng.randrange(2**32))
        v = np.linspace(0, 1, height)[:, None, None]
        sky = (1 - v) * np.array([104, 148, 196]) + v * np.array([236, 222, 204])
        picture = Image.fromarray(np.broadcast_to(sky, (height, w, 3)).astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for k in range(5):
            phase, amp = self.rng.uniform(0, 6), height * (0.10 - 0.012 * k)
            ridge = [
                (
                    x,
                    height * (0.42 + 0.1 * k)
                    + amp * (math.sin(phase + x / (70 + 25 * k)) + 0.3 * math.sin(x / 17 + k)),
                )
                for x in range(0, w + 8, 8)
            ]
            draw.polygon([(0, height), *ridge, (w, height)], fill=(112 - 18 * k, 138 - 16 * k, 120 - 20 * k))
        draw.polygon(
            [(w * 0.40, height), (w * 0.52, height * 0.74), (w * 0.55, height * 0.74), (w * 0.72, height)],
            fill=(150, 178, 200),
        )
        grain = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)), dtype=np.int16) + noise.integers(
            -1, 2, (height, w, 1), dtype=np.int16
        )
        self.image.paste(Image.fromarray(grain.clip(0, 255).astype(np.uint8)), (round(self.x), round(self.y)))
        self.y += height + self.body * 0.5


def make_page(seed: int = 0) -> Image.Image:
    """A4 page at 150 dpi, RGB. Seed 0 is the committed sample; others vary columns, typeface, order and content."""
    rng = random.Random(seed)
    two_columns = seed % 3 != 2
    face = "serif" if seed % 2 == 0 else "sans"
    page = Page(Image.new("RGB", (WIDTH, HEIGHT), PAPER), rng, face, body=21 if face == "serif" else 17)
    draw, margin = page.draw, 110
    page.x, page.y, page.width = margin, 62, WIDTH - 2 * margin

    number = 12 + 5 * seed
    small = page.font(page.body * 0.84, 2)
    draw.text((margin, 62), "Annals of Small Measurements, vol. 7", fill=GREY, font=small)
    draw.text((WIDTH - margin, 62), "Field reports", fill=GREY, font=small, anchor="ra")
    draw.line((margin, 92, WIDTH - margin, 92), fill=GREY, width=1)
    page.y = 132
    page.text(TITLES[seed % len(TITLES)], page.body * 2.2, align="center", gap=0.8, leading=1.2)
    page.text("A. Lindqvist, M. Okafor and R. Tanaka", page.body * 1.05, align="center", gap=0.9)

    gutter = 40
    width = (WIDTH - 2 * margin - gutter) / 2 if two_columns else WIDTH - 2 * margin
    columns = [margin, margin + width + gutter] if two_columns else [margin]
    top, limit = page.y, HEIGHT - 150

    def figure() -> None:
        page.chart(260 if two_columns else 340)
        page.caption(CAPTIONS[0])

    def table() -> None:
        page.caption(CAPTIONS[1])
        page.table(rng.randint(5, 7))

    def formula() -> None:
        page.formula()
        page.paragraph(1)

    def picture() -> None:
        page.photo(225 if two_columns else 320)
        page.caption(CAPTIONS[2])

    def bullets() -> None:
        page.bullets(4)
        page.paragraph(1)

    blocks = [(440, figure), (360, table), (220, formula), (400, picture), (250, bullets)]  # pixels each needs
    if seed:
        rng.shuffle(blocks)
    section = 0
    for index, x in enumerate(columns):
        page.x, page.y, page.width = x, top, width
        last = index + 1 == len(columns)
        bottom = limit - (70 if last else 0)
        while page.y < bottom - 150:
            if section < len(HEADINGS):
                page.heading(section + 1, HEADINGS[section])
                section += 1
            page.paragraph(2 if two_columns else 3)
            fits = next((block for block in blocks if page.y + block[0] < bottom), None)
            if fits:
                blocks.remove(fits)
                fits[1]()
            elif page.y < bottom - 190:
                page.paragraph(3)
    page.x, page.width, page.y = columns[-1], width, HEIGHT - 172
    draw.line((page.x, page.y - 8, page.x + width * 0.35, page.y - 8), fill=INK, width=1)
    page.text(
        "¹ All names, places and values on this page are invented; it exists to be looked at by a detector.",
        page.body * 0.8,
        align="left",
    )
    draw.text((WIDTH / 2, HEIGHT - 76), str(number), fill=INK, font=page.font(page.body), anchor="ma")
    return page.image


def main(argv: list[str] | None = None) -> int:
    """Command line: writes one page as a PNG."""
    parser = argparse.ArgumentParser(description="Draw a document page for a layout detector.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=HEIGHT, help="pixels; the page is scaled to it")
    arguments = parser.parse_args(argv)
    page = make_page(arguments.seed)
    if arguments.height != HEIGHT:
        page = page.resize((round(WIDTH * arguments.height / HEIGHT), arguments.height), Image.Resampling.LANCZOS)
    page.save(arguments.output, optimize=True)
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())

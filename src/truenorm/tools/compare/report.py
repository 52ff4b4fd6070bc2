"""The report: one HTML page that needs nothing but itself."""

import base64
import html
import re
from collections.abc import Iterable

from truenorm.tools.compare import models
from truenorm.tools.compare.results import Results, table_html

MODELS = {
    "tutorial": (
        "Reshape to (H, W, 1), Conv2D(10, (3, 3)), the normalization, Flatten, "
        "Dense(128, relu), Dropout(0.2), Dense(10, softmax)"
    ),
    "rnn": (
        "the image is read row by row by a recurrent network of width 64, "
        "h' = tanh(norm(W x + U h + b)), then Dense(10, softmax)"
    ),
}
METHOD = (
    "Each model is trained with Keras' fit and Adam at its default settings, once for each "
    "normalization, batch size and seed. A seed gives all normalizations the same initial weights "
    "of the layers they share and the same batches in the same order; the last batch of an epoch "
    "holds the images that are left. Numbers are those after the last epoch. "
    "A time is the median over a run's steps, each from its start until its loss is known, "
    "without the first steps, which compile; small models mostly measure the framework's "
    "overhead."
)
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6575; --line: #d8dde5;
  --page: #ffffff; --card: #f5f7fa; --blue: #155a99; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a3adbd; --line: #3a4252;
  --page: #14181f; --card: #1d232d; --blue: #7db8ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.conclusion { background: var(--card); border-left: 4px solid var(--blue); padding: .9rem 1.1rem;
  margin: 1.25rem 0; font-size: 1.08rem; border-radius: 0 6px 6px 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .85rem;
  border-bottom: 2px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tbody + tbody tr:first-child td { border-top: 1px solid var(--line); }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; padding: .75rem; background: var(--card); border-radius: 8px; min-width: 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 4px; }
figure.norm { display: flex; flex-direction: column; }
figure.norm img { max-height: 22rem; object-fit: contain; padding: .5rem; }
figcaption { margin-top: .5rem; }
pre { white-space: pre-wrap; font: inherit; margin: .5rem 0 0; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1rem;
  margin: 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
@media (max-width: 36rem) {
  body { padding: 1rem .85rem 3rem; }
  table, tbody { display: block; } thead { display: none; }
  tbody::before { content: attr(data-title); display: block; font-weight: 600;
    margin: 1rem 0 .25rem; }
  tr { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem; padding: .5rem 0;
    border-top: 1px solid var(--line); }
  th, td, tbody + tbody tr:first-child td { padding: 0; text-align: left; border: 0;
    white-space: normal; }
  td::before { content: attr(data-name); display: block; color: var(--soft); font-size: .78rem; }
  td:first-child { grid-column: 1 / -1; font-weight: 600; }
  td:first-child::before { content: none; }
  td:nth-child(2) { display: none; }
}
"""


def page(results: Results, figures: dict[str, tuple[str, bytes]]) -> str:
    """The page as text; `figures` are those of `plots.plots`."""
    settings = results.settings
    escape = html.escape
    title = f"Which normalization? The {settings.model} model on {_data_name(settings.data)}"
    runs = len(results.runs)
    labels = ", ".join(norm.label for norm in settings.norms)
    notes = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="soft">{runs} training runs: {escape(labels)}; batch sizes
{_listed(settings.batch_sizes)}; {len(settings.seeds)} seed{"s" * (len(settings.seeds) > 1)};
{settings.epochs} epoch{"s" * (settings.epochs > 1)}.</p>
<p class="conclusion">{escape(results.conclusion)}</p>
<h2>Numbers</h2>
<div class="wide">{table_html(results)}</div>
<p class="soft">Mean over seeds (lowest to highest seed); time is relative to none at the same
batch size.</p>
{f"<h3>Notes</h3><ul>{notes}</ul>" if notes else ""}
<h2>Curves</h2>
<p class="soft">Lines and points are means over seeds; bands and bars reach from the lowest to the
highest seed.</p>
<div class="figures">
{"".join(_figure(png, caption, caption) for caption, png in figures.values())}
</div>
<h2>What each normalization puts together</h2>
<p class="soft">The elements in blue share one mean and variance (for rms: one root mean
square).</p>
<div class="figures">
{"".join(_pictures(results))}
</div>
<h2>Method</h2>
<p>{escape(METHOD)}</p>
<h2>Settings and versions</h2>
<dl>{"".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _settings(results))}</dl>
</body>
</html>
"""


def _pictures(results: Results) -> Iterable[str]:
    settings = results.settings
    for norm in settings.norms:
        if norm.name == "none":
            continue
        explanation = models.explained(
            norm, settings.model, results.image_shape, settings.batch_sizes[0]
        )
        yield (
            f'<figure class="norm"><h3>{html.escape(norm.label)}</h3>'
            f"{_image(explanation.image('png'), f'the elements that {norm.label} puts together')}"
            f"<figcaption><pre>{html.escape(_unwrapped(str(explanation)))}</pre></figcaption>"
            "</figure>"
        )


def _unwrapped(text: str) -> str:
    """Join the continued lines of text that was wrapped for a terminal; the page wraps anew."""
    joined = re.sub(r"(?<![.:)])\n +(?!- )", " ", re.sub(r"\n {4,}", " ", text))
    return re.sub(r"^ +", "", joined, flags=re.MULTILINE)


def _settings(results: Results) -> list[tuple[str, str]]:
    settings = results.settings
    norms = "; ".join(
        f"{norm.label} ({', '.join(f'{k}={v}' for k, v in norm.options.items()) or 'no options'})"
        for norm in settings.norms
    )
    return [
        ("model", f"{settings.model}: {MODELS[settings.model]}"),
        ("data", f"{settings.data}, trained on the {settings.train_on} images"),
        ("normalizations", norms),
        ("batch sizes", _listed(settings.batch_sizes)),
        ("epochs", str(settings.epochs)),
        ("seeds", _listed(settings.seeds)),
        ("train size", "all" if settings.train_size is None else str(settings.train_size)),
        *results.facts.items(),
    ]


def _figure(png: bytes, alt: str, caption: str) -> str:
    return f"<figure>{_image(png, alt)}<figcaption>{html.escape(caption)}</figcaption></figure>\n"


def _image(png: bytes, alt: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _data_name(data: str) -> str:
    return data.replace("\\", "/").rsplit("/", 1)[-1]

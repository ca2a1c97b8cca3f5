"""Make README.md, and its pictures in assets/, from nbs/index.ipynb.

    python tools/readme.py

Cells that begin with `#| hide` are left out, `#| echo: false` leaves out the code of a cell, and links and pictures are
turned from the notebook's folder to the root. A test compares README.md with what this makes.
"""
import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
DIRECTIVE = re.compile(r'^\s*#\s*\|\s*(.+?)\s*$', re.M)


def shown(cell):
    "The cell as a reader of README.md sees it, or None"
    marks = DIRECTIVE.findall(cell.source) if cell.cell_type == 'code' else []
    if 'hide' in marks: return None
    if cell.cell_type == 'code': cell.source = DIRECTIVE.sub('', cell.source).strip()
    if 'echo: false' in marks: cell.metadata['transient'] = {'remove_source': True}
    return cell


def from_root(markdown, folder='nbs'):
    "Relative link targets of a text in `folder`, as seen from the root"
    def turn(m):
        to = m[2]
        return m[0] if re.match(r'[a-z]+:|#|/', to) else f'{m[1]}{posixpath.normpath(posixpath.join(folder, to))}'
    return re.sub(r'(\]\()([^)\s]+)', turn, markdown)


def build(path=ROOT/'nbs/index.ipynb'):
    "README.md's text, and {path from the root: bytes} of its pictures"
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in map(shown, nb.cells) if c is not None]
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = from_root(c.source)
    plain = ['text/markdown', 'image/png', 'image/svg+xml', 'text/plain']  # GitHub shows no styled HTML tables
    config = Config({'NbConvertBase': {'display_data_priority': plain},
                     'ExtractOutputPreprocessor': {'output_filename_template': '{unique_key}_{index}_{cell_index}{extension}'}})
    text, found = MarkdownExporter(config=config).from_notebook_node(nb, resources={'unique_key': 'assets/readme'})
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', found.get('outputs', {})


if __name__ == '__main__':
    text, pictures = build()
    for old in (ROOT/'assets').glob('readme_*'): old.unlink()
    for name, data in pictures.items():
        (ROOT/name).parent.mkdir(exist_ok=True)
        (ROOT/name).write_bytes(data)
    (ROOT/'README.md').write_text(text, encoding='utf-8')
    print(f'README.md: {text.count(chr(10))} lines, {len(pictures)} pictures')

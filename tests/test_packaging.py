"What a newcomer gets: the README's commands and links hold, the public face is whole, requirements are declared."
import ast
import importlib.metadata as metadata
import importlib.util
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import deepmrs

ROOT = Path(__file__).parents[1]
README = (ROOT/'README.md').read_text(encoding='utf-8')
ini = ConfigParser(delimiters=['='])
ini.read(ROOT/'settings.ini', encoding='utf-8')
CONFIG = ini['DEFAULT']


def python(code):
    "Run code in a fresh interpreter, outside the repository; its output"
    out = subprocess.run([sys.executable, '-c', code], cwd='/', capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout


def load_tool(name):
    "A script of tools/ as a module"
    spec = importlib.util.spec_from_file_location(name, ROOT/'tools'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- README

def test_readme_is_made_from_the_index_notebook():
    text, pictures = load_tool('readme').build()
    assert text == README, 'README.md is out of date: python tools/readme.py'
    stored = {f'assets/{p.name}': p.read_bytes() for p in (ROOT/'assets').glob('readme_*')}
    assert pictures == stored, 'pictures of README.md are out of date: python tools/readme.py'


def test_readme_tool(tmp_path):
    "Hidden cells go, pictures and links are turned to the root"
    import nbformat.v4 as nbf
    png = 'iVBORw0KGgo='
    cells = [nbf.new_markdown_cell('# T\n[a](00_core.ipynb) [b](../LICENSE) [c](#x) [d](https://e.org/f)'),
             nbf.new_code_cell('#| hide\nsecret()'),
             nbf.new_code_cell('#| echo: false\nunseen()', outputs=[nbf.new_output('stream', text='seen')]),
             nbf.new_code_cell('plot()', outputs=[nbf.new_output('display_data', data={'image/png': png, 'text/plain': '<Figure>'})])]
    path = tmp_path/'index.ipynb'
    path.write_text(nbf.writes(nbf.new_notebook(cells=cells)))
    text, pictures = load_tool('readme').build(path)
    assert '[a](nbs/00_core.ipynb) [b](LICENSE) [c](#x) [d](https://e.org/f)' in text
    assert 'plot()' in text and 'seen' in text and 'secret' not in text and 'unseen' not in text and '<Figure>' not in text
    (name, data), = pictures.items()
    assert name.startswith('assets/readme_') and f']({name})' in text and data.startswith(b'\x89PNG')


def test_readme_links_lead_somewhere():
    links = [to for to in re.findall(r'\]\(([^)\s]+)', README) if not re.match(r'[a-z]+:|#', to)]
    assert links
    assert not [to for to in links if not (ROOT/to.split('#')[0]).exists()]


def test_readme_names_each_notebook():
    names = [str(nb.relative_to(ROOT)) for nb in (ROOT/'nbs').rglob('*.ipynb')
             if nb.name != 'index.ipynb' and not nb.name.startswith(('_', '.')) and '.ipynb_checkpoints' not in nb.parts]
    assert names
    assert not [n for n in names if f']({n})' not in README]


@pytest.mark.parametrize('name, run', [('demo', 'deepmrs demo'), ('test', 'python tools/check.py'), ('notebooks', 'jupyter lab nbs')])
def test_readme_commands(name, run):
    "One line to copy, with the constraints file; .ci/run reads them at the same marks"
    command, = re.findall(rf'^<!-- command: {name} -->\n```sh\n([^\n]+)\n```$', README, re.M)
    install, then = command.split(' && ')
    assert install.startswith('pip install ') and install.endswith(' -c constraints.txt') and then == run
    for extra in re.findall(r'\.\[(\w+)\]', install): assert f'{extra}_requirements' in CONFIG


def test_workflow_calls_the_same_script():
    assert 'run: bash .ci/run' in (ROOT/'.github/workflows/ci.yml').read_text()


# ---- public face

def test_version():
    assert deepmrs.__version__ == CONFIG['version'] == metadata.version('deepmrs')


@pytest.mark.parametrize('name', deepmrs.FACE)
def test_public_name(name):
    value = getattr(deepmrs, name)
    assert value.__module__ == f'deepmrs.{deepmrs.FACE[name]}'
    assert value.__doc__, f'{name} has no docstring'
    assert name in dir(deepmrs) and name in deepmrs.__all__


def test_unknown_name_and_missing_module(monkeypatch):
    with pytest.raises(AttributeError, match='nonsense'): deepmrs.nonsense
    monkeypatch.setitem(deepmrs.FACE, 'later', 'not_written')
    with pytest.raises(AttributeError, match='deepmrs.not_written is missing'): deepmrs.later


def test_missing_package_is_named():
    "A package that a module needs is not mistaken for a missing name"
    assert python("""
import sys; sys.modules['torch'] = None
import deepmrs
try: deepmrs.Acquisition
except ModuleNotFoundError as e: print(e.name)""").strip() == 'torch'


@pytest.mark.parametrize('name', [n for n, m in deepmrs.FACE.items() if n == m])
def test_function_with_its_modules_name(name):
    "`dm.report` is the function, also after the module `report` was imported"
    assert python(f'import deepmrs, deepmrs.{name}; from deepmrs.{name} import {name} as f; '
                  f'print(deepmrs.{name} is f, callable(f))').split() == ['True', 'True']


def test_import_is_light():
    loaded = python('import deepmrs, sys; print(*sys.modules)').split()
    assert not {'torch', 'numpy', 'pandas', 'nibabel', 'pydantic', 'pytorch_lightning', 'matplotlib.pyplot'} & set(loaded)


@pytest.mark.parametrize('module', ['fitting', 'training'])
def test_computing_needs_no_file_or_notebook_packages(module):
    "So that a bare machine with a GPU can train and fit"
    absent = ['nibabel', 'nifti_mrs', 'pydantic', 'ipywidgets', 'typer', 'jinja2']
    python(f'import sys; sys.modules.update(dict.fromkeys({absent})); import deepmrs.{module}')


# ---- requirements

def distributions(*keys):
    "Names of required packages, as they are imported"
    names = {re.match(r'[\w.-]+', r)[0].lower().replace('-', '_') for k in keys for r in CONFIG[k].split()}
    return {{'pillow': 'PIL'}.get(n, n) for n in names}


def third_party(tree):
    "Top-level names of other people's packages that a syntax tree imports"
    for n in ast.walk(tree):
        names = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module] if isinstance(n, ast.ImportFrom) and not n.level else []
        yield from ({name.split('.')[0] for name in names} - set(sys.stdlib_module_names) - {'deepmrs'})


@pytest.mark.parametrize('path', sorted((ROOT/'deepmrs').glob('*.py')), ids=lambda p: p.name)
def test_imports_are_required(path):
    "What a module imports is required; what it imports inside a function may come with an extra for users"
    tree = ast.parse(path.read_text(encoding='utf-8'))
    at_top = set(third_party(ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])))
    assert at_top <= distributions('requirements')
    extras = [k for k in CONFIG if k.endswith('_requirements') and k != 'dev_requirements']
    assert set(third_party(tree)) <= distributions('requirements', *extras)


def test_extras():
    extras = set(metadata.metadata('deepmrs').get_all('Provides-Extra'))
    assert extras >= {'dev', 'notebooks', 'search', 'vendor'}

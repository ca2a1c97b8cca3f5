"""The lowest versions that settings.ini allows, as pins for pip: do they still work?

    python tools/lowest.py > lowest.txt          # the library's own requirements
    python tools/lowest.py search > lowest.txt   # and those of an extra
    pip install -e . -c lowest.txt pytest hypothesis && pytest tests/test_io.py

A requirement without `>=` (an exact pin, an upper bound) is left to pip.
"""

import configparser
import sys
from pathlib import Path

SETTINGS = Path(__file__).parents[1] / 'settings.ini'


def lowest(extras: list[str] = [], settings: Path = SETTINGS) -> list[str]:
    """Pins such as `numpy==1.26`, one for each lower bound.

    Parameters
    ----------
    extras
        Names of extras whose bounds are wanted, too.
    settings
        The file that holds the requirements.

    Raises
    ------
    SystemExit
        When settings.ini has no extra of that name.
    """
    config = configparser.ConfigParser()
    config.read(settings, encoding='utf-8')
    fields = config['DEFAULT']
    words = fields['requirements'].split()
    for name in extras:
        if f'{name}_requirements' not in fields:
            sys.exit(f'settings.ini has no extra {name!r}.')
        words += fields[f'{name}_requirements'].split()
    split = [word.partition('>=') for word in words]
    return [f'{name}=={version.split(",")[0]}' for name, bound, version in split if bound]


if __name__ == '__main__':
    print('\n'.join(lowest(sys.argv[1:])))

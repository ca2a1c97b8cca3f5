"""deepmrs: quantify brain MR spectra with one differentiable forward model.

    import deepmrs as dm
    result = dm.quantify(dm.read_spectra("sub-01_svs.nii.gz"), dm.read_basis("press_te35.basis"))

A public name is loaded from its module when it is first used, so `import deepmrs` is quick, and a part of the library
needs only the packages that this part uses.
"""
import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

# The public face: name -> the module that defines it
FACE = {
    'Acquisition': 'core',
    'Spectra': 'core',
    'InputError': 'core',
    'Basis': 'basis',
    'simulate_basis': 'spins',
    'read_basis': 'io',
    'read_spectra': 'io',
    'write_basis': 'io',
    'write_spectra': 'io',
    'Decoder': 'decoder',
    'adapt': 'model',
    'train': 'training',
    'load_model': 'training',
    'search': 'search',
    'fit': 'fitting',
    'posterior': 'posterior',
    'quantify': 'quantify',
    'Result': 'quantify',
    'load_result': 'quantify',
    'report': 'report',
    'evaluate': 'studies',
    'write_for_lcmodel': 'peers',
    'read_lcmodel': 'peers',
    'write_for_fsl_mrs': 'peers',
    'read_fsl_mrs': 'peers',
    'side_by_side': 'peers',
    'plot_side_by_side': 'peers',
    'explore': 'widgets',
    'browse': 'widgets',
    'watch': 'widgets',
}
__all__ = list(FACE)


def __getattr__(name):
    "Load a public name from its module (PEP 562)"
    if name not in FACE: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    path = f'{__name__}.{FACE[name]}'
    try: module = import_module(path)
    except ModuleNotFoundError as e:
        if e.name != path: raise  # a package that the module needs is missing: say which
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}: {path} is missing') from e
    globals()[name] = value = getattr(module, name)
    return value


def __dir__(): return sorted({*globals(), *FACE})


class _Package(ModuleType):
    "Lets a public function bear its module's name: `deepmrs.report` stays the function after `deepmrs.report` was imported"
    def __setattr__(self, name, value):
        if isinstance(value, ModuleType) and FACE.get(name) == name: value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

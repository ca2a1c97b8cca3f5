"""Good files to begin with: small ones of every format, written by deepmrs itself.

Real ones where there are some, and a few made to be hostile.
"""

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import torch

from deepmrs.basis import Basis
from deepmrs.core import Acquisition, Spectra
from deepmrs.io import write_basis, write_spectra
from deepmrs.model import make_decoder
from deepmrs.quantify import quantify
from deepmrs.training import build_model

REAL = Path(__file__).parents[2] / 'shared/data'
LARGEST = 120_000  # bytes of a real file
FORMS = {
    '.gz': 'gzip',
    '.nii': 'nifti',
    '.npz': 'zip',
    '.mat': 'matlab',
    '.json': 'json',
    '.safetensors': 'safetensors',
    '.raw': 'text',
    '.h2o': 'text',
    '.txt': 'text',
    '.basis': 'text',
    '.spar': 'text',
    '.csv': 'text',
    '.table': 'text',
}
ACQ = Acquisition(5e-4, 123.2, 64, echo_time=0.03)
LINES = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)]}
RUN = {
    'basis': {'simulate': {'names': ['NAA', 'Cr']}},
    'preset': 'none',
    'points': 64,
    'batch_size': 8,
    'priors': {'shift': [-3, 3]},
    'noise_sd': [0.1, 1.0],
    'encoder': {'name': 'convnet', 'channels': [4, 8]},
    'window': [0.5, 4.0],
    'test': {},
    'out': 'run',
}


@dataclass
class Case:
    "Files of one input, and who reads them"

    name: str
    reader: str  # a name of `fuzz.READ`
    files: dict  # path inside the input's folder -> bytes
    main: str  # what the reader is given
    damaged: tuple = ()  # the files that may be damaged; empty: all
    as_it_is: bool = False  # hostile from the start: also read undamaged

    def form(self, path):
        return FORMS.get(Path(path).suffix.lower(), 'binary')


def toy():
    "(basis, two spectra) of singlets"
    t = ACQ.time_axis(dtype=torch.float64)
    fids = torch.stack(
        [
            sum(h * torch.exp((2j * np.pi * ACQ.to_hz(p) - 20) * t) for p, h in lines)
            for lines in LINES.values()
        ]
    )
    basis = Basis(fids, list(LINES), acquisition=ACQ)
    noise = torch.randn(
        2, ACQ.points, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    return basis, Spectra(
        torch.tensor([[9.0, 8.0, 1.0], [8.0, 7.0, 2.0]]).to(torch.complex64) @ basis.fids
        + 0.1 * noise,
        acquisition=ACQ,
    )


def _taken(folder):
    "Path inside -> bytes of all files in a folder"
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file()
    }


def _spectra_cases(folder):
    "Spectra in every format that is written here"
    _, spectra = toy()
    for ending in ('nii', 'nii.gz', 'RAW', 'H2O', 'txt', 'mat', 'npz', 'npy'):
        place = folder / f'spectra_{ending}'
        write_spectra(spectra[:1] if ending in ('RAW', 'H2O') else spectra, place / f'x.{ending}')
        yield Case(f'spectra .{ending}', 'spectra', _taken(place), f'x.{ending}')
    grid = Spectra(
        spectra.fids.repeat(4, 1).reshape(2, 2, 2, -1),
        acquisition=ACQ,
        affine=np.diag([9.0, 8.0, 7.0, 1.0]),
    )
    write_spectra(grid, folder / 'grid/x.nii')
    yield Case('spectra on a grid', 'spectra', _taken(folder / 'grid'), 'x.nii')
    beside = json.dumps(
        {'dwell_time': ACQ.dwell_time, 'spectrometer_frequency': ACQ.spectrometer_frequency}
    ).encode()
    yield Case(
        'spectra, big-endian array',
        'spectra',
        {'x.npy': _npy(spectra.fids.numpy().astype('>c8')), 'x.json': beside},
        'x.npy',
    )
    plain = io.BytesIO()
    scipy.io.savemat(
        plain,
        {
            'data': spectra.fids.numpy().T,
            'dwell_time': ACQ.dwell_time,
            'spectrometer_frequency': ACQ.spectrometer_frequency,
            'info': {'te': 30.0, 'name': 'x'},
            'list': np.array(['a', 2.0], dtype=object),
        },
    )
    yield Case(
        'spectra, uncompressed .mat with a struct', 'spectra', {'x.mat': plain.getvalue()}, 'x.mat'
    )
    yield Case('spectra, .mat 7.3', 'spectra', {'x.mat': _mat73(spectra.fids.numpy())}, 'x.mat')


def _npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _mat73(fids):
    "MATLAB's HDF5 format, with a name"
    out = io.BytesIO()
    with h5py.File(out, 'w', userblock_size=512) as f:
        f['data'] = np.rec.fromarrays([fids.real, fids.imag], names='real,imag')
        f['dwell_time'], f['spectrometer_frequency'] = (
            [[ACQ.dwell_time]],
            [[ACQ.spectrometer_frequency]],
        )
        f['sequence'] = np.array([[ord(c)] for c in 'press'], dtype=np.uint16)
        f['sequence'].attrs['MATLAB_class'] = np.bytes_('char')
    return out.getvalue()


def _basis_cases(folder):
    "Basis sets in every format that is written here"
    basis, _ = toy()
    for ending in ('BASIS', 'txt', 'mat', 'npz', 'npy'):
        place = folder / f'basis_{ending}'
        write_basis(basis, place / f'b.{ending}')
        yield Case(f'basis .{ending}', 'basis', _taken(place), f'b.{ending}')
    for raw in (False, True):
        place = folder / f'basis_folder_{raw}'
        write_basis(basis, place / 'b', raw=raw)
        yield Case(f'basis folder of {".RAW" if raw else ".json"}', 'basis', _taken(place), 'b')


def _work_cases(folder):
    "Run files, a model, a result"
    basis, spectra = toy()
    several = {'common': RUN, 'runs': {'a': {'out': 'a'}, 'b': {'batch_size': 16, 'out': 'b'}}}
    for name, content in (('run file', RUN), ('run file of several', several)):
        yield Case(name, 'runs', {'run.json': json.dumps(content).encode()}, 'run.json')
    decoder, preset, _ = make_decoder(basis, preset='none')
    model, _ = build_model(decoder, encoder_options={'channels': [4, 8]}, points=32, preset=preset)
    model.save(folder / 'model')
    files = _taken(folder / 'model')
    yield Case('model', 'model', {f'm/{k}': v for k, v in files.items()}, 'm')
    result = quantify(spectra, basis, preset='none', device='cpu')
    result.save(folder / 'result')
    files = _taken(folder / 'result')
    yield Case('result', 'result', {'r/result.safetensors': files['result.safetensors']}, 'r')
    table = files['concentrations.csv']
    yield Case('table of answers', 'answers', {'t.csv': table}, 't.csv')
    lcmodel = (
        '$$CONC  3 lines in following concentration table = NCONC+1\n'
        '    Conc.  %SD /Cr+PCr  Metabolite\n'
        '   1.23E+00   7%   1.000  Cr+PCr\n'
        '   2.46E+00   5%   2.000  NAA+NAAG\n\n'
        '$$MISC  6 lines in following misc. output table\n'
        '  FWHM = 0.043 ppm    S/N =  13\n'
    )
    yield Case('table of LCModel', 'lcmodel', {'r/a.table': lcmodel.encode()}, 'r')
    csv = (
        b'Row, Col, Cr+PCr, Cr+PCr %SD, Cr+PCr/Cr+PCr, NAA, NAA %SD, NAA/Cr+PCr\n'
        b' 1, 1, 1.2, 7, 1.0, 2.4, 5, 2.0\n'
    )
    yield Case('csv of LCModel', 'lcmodel', {'r/a.csv': csv}, 'r')
    fsl = b'Metab,Raw conc,Raw CRLB\nNAA,1.2,0.1\nCr,1.0,0.1\nPCr,0.5,0.1\n'
    yield Case('table of FSL-MRS', 'fsl', {'r/summary.csv': fsl}, 'r')


def _real_cases():
    "Real files, if they are there"
    kinds = {
        '.gz': 'spectra',
        '.nii': 'spectra',
        '.raw': 'spectra',
        '.txt': 'spectra',
        '.sdat': 'spectra',
        '.basis': 'basis',
    }
    for path in sorted(REAL.rglob('*')):
        reader = kinds.get(path.suffix.lower())
        if reader and path.stat().st_size < LARGEST:
            beside = (
                [
                    p
                    for p in path.parent.iterdir()
                    if p.stem == path.stem and p.suffix.lower() in ('.sdat', '.spar')
                ]
                if path.suffix.lower() == '.sdat'
                else [path]
            )
            yield Case(
                f'real {path.name}', reader, {p.name: p.read_bytes() for p in beside}, path.name
            )
    for path in sorted(REAL.rglob('*.mat')):
        if path.stat().st_size < LARGEST:
            yield Case(
                f'real {path.name}',
                'basis' if 'basis' in path.name else 'spectra',
                {path.name: path.read_bytes()},
                path.name,
            )
    for path in sorted(REAL.glob('seed/*.json')):
        yield Case(f'real {path.name}', 'runs', {path.name: path.read_bytes()}, path.name)


def _matrix(dims, kind, content=b'', follows=0):
    "A MATLAB v5 file of one matrix; `follows`: bytes that it says will come after `content`"

    def element(code, body):
        return struct.pack('<II', code, len(body)) + body.ljust((len(body) + 7) // 8 * 8, b'\0')

    inside = (
        element(6, struct.pack('<II', kind, 0))
        + element(5, struct.pack(f'<{len(dims)}i', *dims))
        + element(1, b'data')
        + content
    )
    return (
        b'MATLAB 5.0 MAT-file'.ljust(124)
        + struct.pack('<HH', 0x0100, 0x4D49)
        + struct.pack('<II', 14, len(inside) + follows)
        + inside
    )


def _zeros(before, many, size=100_000_000, wbits=15):
    "`before` and `many` × `size` zero bytes, compressed: each piece of zeros looks the same"
    packer = zlib.compressobj(9, wbits=wbits)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + piece * many + packer.flush()


def _hostile_cases(folder):
    "Small files that ask for much"
    for name, kind in (('cell', 1), ('struct', 2), ('char', 4), ('double', 6)):
        yield Case(
            f'.mat, huge {name}',
            'spectra',
            {'x.mat': _matrix((20_000, 20_000), kind)},
            'x.mat',
            as_it_is=True,
        )
    inside = _matrix((20_000, 20_000), 6, struct.pack('<II', 2, 400_000_000), 400_000_000)[
        128:
    ]  # doubles, stored as small numbers
    packed = _zeros(inside, 4)
    head = b'MATLAB 5.0 MAT-file'.ljust(124) + struct.pack('<HH', 0x0100, 0x4D49)
    yield Case(
        '.mat, zeros unpacked',
        'spectra',
        {'x.mat': head + struct.pack('<II', 15, len(packed)) + packed},
        'x.mat',
        as_it_is=True,
    )
    nii = _taken(folder / 'spectra_nii')['x.nii']
    yield Case(
        '.nii.gz, zeros unpacked',
        'spectra',
        {'x.nii.gz': _zeros(nii, 30, wbits=31)},
        'x.nii.gz',
        as_it_is=True,
    )
    for shape in (
        '(10000000000,)',
        '(100000, 100000)',
        '(2, 0)',
        '(-1,)',
        '(2, 3, 4, 5, 6, 7, 8, 9)',
    ):
        text = f"{{'descr': '<c8', 'fortran_order': False, 'shape': {shape}, }}"
        header = text.ljust(117).encode() + b'\n'
        npy = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + bytes(64)
        yield Case(f'.npy of shape {shape}', 'spectra', {'x.npy': npy}, 'x.npy', as_it_is=True)
        yield Case(
            f'.npz of shape {shape}',
            'spectra',
            {'x.npz': _zip({'fids.npy': npy})},
            'x.npz',
            as_it_is=True,
        )
    out = io.BytesIO()
    with h5py.File(out, 'w', userblock_size=512) as f:
        f.create_dataset('data', shape=(100_000, 100_000), dtype=np.float64, chunks=(100, 100))
    yield Case('.mat 7.3, huge', 'spectra', {'x.mat': out.getvalue()}, 'x.mat', as_it_is=True)
    for text in (
        '[' * 200_000,
        '{"a":' * 200_000,
        '{"basis": ' + '9' * 5000 + '}',
        '{"format": 1e400}',
        '{"basis": "\\ud800"}',
    ):
        for reader, path in (('runs', 'x.json'), ('basis', 'x.json')):
            yield Case(
                f'{reader}, JSON {text[:10]}', reader, {path: text.encode()}, path, as_it_is=True
            )
        yield Case(
            f'model, JSON {text[:10]}',
            'model',
            {'m/model.json': text.encode(), 'm/model.safetensors': b'\0' * 16},
            'm',
            as_it_is=True,
        )
    pointer = (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 12345\n'
    )
    for ending in ('nii.gz', 'nii', 'RAW', 'txt', 'mat', 'npy', 'npz'):
        yield Case(
            f'pointer file .{ending}',
            'spectra',
            {f'x.{ending}': pointer},
            f'x.{ending}',
            as_it_is=True,
        )


def _zip(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def corpus(folder):
    "All `Case`s; `folder` is an empty one for what has to be written on the way"
    return [
        *_spectra_cases(folder),
        *_basis_cases(folder),
        *_work_cases(folder),
        *_real_cases(),
        *_hostile_cases(folder),
    ]

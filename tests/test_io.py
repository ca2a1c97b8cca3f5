"Files: round trips, odd files, bad files"
import gzip
import json
import math
import os
import re
import shutil
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepmrs import io as dio
from deepmrs.basis import Basis, match_basis, reference_offset, upright
from deepmrs.core import Acquisition, InputError, Spectra, fid_to_spectrum
from deepmrs.io import (MAX_POINTS, Loaded, check_reader, describe_file, first_point_halved, load, looks_conjugated, parse_namelists, parse_numbers,
                        read_basis, read_paper_mm, read_spectra, register_reader, write_basis, write_spectra)

DATA = Path(__file__).parents[2]/'shared/data'
real = pytest.mark.skipif(not DATA.exists(), reason='the real files (../shared/data) are not here')
ACQ = Acquisition(5e-4, 123.2, 512, echo_time=0.03)
GIVEN = dict(dwell_time=5e-4, spectrometer_frequency=123.2)
SHAPES = {'NAA': [(2.008, 3)], 'Cr': [(3.027, 3), (3.913, 2)], 'GPC': [(3.212, 9)], 'Lac': [(1.33, 2)]}
few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def toy(acq=ACQ, damping=4.):
    t = acq.time_axis(dtype=torch.float64)
    return Basis(torch.stack([sum(h*torch.exp((2j*math.pi*acq.to_hz(p) - damping)*t) for p, h in ls) for ls in SHAPES.values()]), list(SHAPES), acquisition=acq)


def brain(batch=1, noise=0.2, acq=ACQ):
    g = torch.Generator().manual_seed(1)
    amounts = torch.tensor([9., 8., 1.5, .5]) + torch.rand(batch, 4, generator=g)
    x = amounts.to(torch.complex64) @ toy(acq).fids * torch.exp(-8*acq.time_axis())
    return Spectra(x + noise*torch.randn(batch, acq.points, dtype=torch.complex64, generator=g), acquisition=acq)


def noise(shape, seed=0):
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def close(a, b, tol=2e-7):
    assert a.fids.shape == b.fids.shape
    assert float((a.fids - b.fids).abs().max() / a.fids.abs().max()) < tol


# ---- round trips

@few
@given(n=st.integers(2, 200), seed=st.integers(0, 99), dwell=st.floats(5e-5, 2e-3), mhz=st.floats(20, 500), scale=st.sampled_from([1e-6, 1., 1e8]),
       ending=st.sampled_from(['nii.gz', 'nii', 'RAW', 'H2O', 'txt', 'mat', 'npz', 'npy']))
def test_round_trip_of_one_spectrum_is_exact(tmp_path, n, seed, dwell, mhz, scale, ending):
    x = Spectra(noise((1, n), seed)*scale, dwell, mhz)
    given = dict(dwell_time=dwell) if ending in ('RAW', 'H2O') else {}
    write_spectra(x, tmp_path/f'x.{ending}')
    y = read_spectra(tmp_path/f'x.{ending}', **given)
    assert torch.equal(x.fids, y.fids)
    assert y.acquisition.dwell_time == pytest.approx(dwell, rel=1e-12) and y.acquisition.spectrometer_frequency == pytest.approx(mhz, rel=1e-12)
    write_spectra(y, tmp_path/f'y.{ending}')
    assert torch.equal(read_spectra(tmp_path/f'y.{ending}', **given).fids, x.fids)


@few
@given(m=st.integers(1, 5), n=st.integers(2, 100), seed=st.integers(0, 99), ending=st.sampled_from(['.BASIS', '.mat', '.npz', '.npy', '.txt', '']))
def test_round_trip_of_a_basis(tmp_path, m, n, seed, ending):
    x = Basis(noise((m, n), seed), [f'met{i}' for i in range(m)], 2.5e-4, 297.2, echo_time=0.02)
    path = tmp_path/f'b{ending}'
    if path.is_dir(): shutil.rmtree(path)
    write_basis(x, path)
    y = read_basis(path)
    close(x, y)
    assert y.names == x.names and y.acquisition.dwell_time == pytest.approx(2.5e-4, rel=1e-12)
    if ending != '.txt': assert y.acquisition.echo_time == pytest.approx(0.02)


@pytest.mark.parametrize('shape', [(1,), (5,), (4, 3), (4, 3, 2), (1, 1, 1), (2, 2, 1, 3), (1, 1, 1, 3)])
@pytest.mark.parametrize('ending', ['nii.gz', 'npz', 'npy'])
def test_grid_and_names(tmp_path, shape, ending):
    b = math.prod(shape)
    x = Spectra(noise((b, 32)), 2.5e-4, 123.2, shape=shape, names=[f'voxel {i}' for i in range(b)], affine=np.diag([9., 8., 7., 1.]))
    write_spectra(x, tmp_path/f'x.{ending}')
    y = read_spectra(tmp_path/f'x.{ending}')
    assert torch.equal(x.fids, y.fids) and x.names == y.names
    assert math.prod(y.shape) == b and (ending != 'nii.gz' or len(shape) < 3 or math.prod(shape[:3]) == 1 or y.shape == shape)


@few
@given(numbers=st.lists(st.floats(-200, 200).filter(lambda v: abs(v) > 1e-3), min_size=12, max_size=12))
def test_affine_bit_for_bit(tmp_path, numbers):
    affine = np.vstack([np.array(numbers).reshape(3, 4), [0, 0, 0, 1]])
    if abs(np.linalg.det(affine[:3, :3])) < 1: return
    x = Spectra(noise((2, 2, 1, 8)), 2.5e-4, 123.2, affine=affine)
    write_spectra(x, tmp_path/'x.nii.gz')
    assert np.array_equal(nibabel.load(tmp_path/'x.nii.gz').affine, affine)
    y = read_spectra(tmp_path/'x.nii.gz')
    write_spectra(y, tmp_path/'y.nii.gz')
    assert np.array_equal(read_spectra(tmp_path/'y.nii.gz').affine, affine)


def test_nifti_mrs_library_agrees(tmp_path):
    "What the standard's own library reads is what was written, on its ppm axis"
    from nifti_mrs.nifti_mrs import NIFTI_MRS
    x = brain()
    write_spectra(x, tmp_path/'x.nii.gz')
    img = NIFTI_MRS(str(tmp_path/'x.nii.gz'))
    assert np.array_equal(img[:].reshape(-1), x.fids[0].numpy())
    assert np.allclose(img.axes.ppmAxisShift, x.acquisition.ppm_axis(dtype=torch.float64))


def test_other_centre_keeps_the_ppm(tmp_path):
    "Formats without a ppm reference get the FIDs moved, so that NAA stays at 2.01 ppm"
    acq = ACQ.replace(centre_ppm=3.0)
    for ending in ('.BASIS', '.txt', ''):
        write_basis(toy(acq), tmp_path/f'c{ending}')
        back = read_basis(tmp_path/f'c{ending}')
        assert back.acquisition.centre_ppm == 4.65 and abs(reference_offset(back)[0]) < 2e-3


# ---- odd files that are accepted, each with a sentence

def test_fortran_numbers():
    assert np.allclose(parse_numbers('1.234E-01-5.678E-02-1.0D+02, 3.5 -0.25-100 .5', 'x'), [.1234, -.05678, -100, 3.5, 0, .5])
    for bad in ('1.0 2.0x', '*****', '1.0E-015.0E-02', '1.0 abc'):
        with pytest.raises(InputError): parse_numbers(bad, 'x')


def test_namelist_quirks():
    text = """ $seqpar
 FWHMBA =  0.1 ,
 HZPPPM =  127.7861,
 ECHOT =  ,
 SEQ = 'PRESS' $END
 $NMUSED
 FILERAW = '/tmp/a $b=c/x.raw', PPMAPP(1) =  0.5 -0.5, AUTOPH = F, CONCSC = -1.,
 XTRASH = 0. $END
 &BASIS METABO="NAA" ISHIFT=-3 TRAMP=1.D0 /
 1 2"""
    (a, seq, _), (b, used, _), (c, basis, rest) = parse_namelists(text, 'x')
    assert (a, b, c) == ('SEQPAR', 'NMUSED', 'BASIS') and rest.split() == ['1', '2']
    assert seq == {'fwhmba': .1, 'hzpppm': 127.7861, 'seq': 'PRESS'} and used['autoph'] is False and used['xtrash'] == 0
    assert used['fileraw'] == '/tmp/a $b=c/x.raw' and basis == {'metabo': 'NAA', 'ishift': -3., 'tramp': 1.}


def basis_text(fids, names, n, dwell='5.0E-04', more='', scale=1., fmt='%13.5E%13.5E\n'):
    s = np.fft.fft(fids, n=n, axis=1)/math.sqrt(n)/scale
    text = f" $SEQPAR\n HZPPPM = 123.2\n $END\n $BASIS1\n FMTBAS='(6E13.5)' BADELT = {dwell} NDATAB = {n}\n $END\n"
    for name, x in zip(names, s): text += f" $BASIS\n METABO = '{name}' {more}\n $END\n" + ''.join(fmt % (v.real, v.imag) for v in x)
    return text


@pytest.mark.parametrize('fill', [False, True])
@pytest.mark.parametrize('halve', [False, True])
@pytest.mark.parametrize('points,dwell', [(512, 5e-4), (2048, 2.5e-4), (333, 1/1200)])
def test_basis_first_point_and_filling_are_found(tmp_path, fill, halve, points, dwell):
    b = toy(Acquisition(dwell, 123.2, points), damping=2.)
    x = b.fids.conj().resolve_conj().numpy().astype(complex)
    x[:, 0] /= 1 + halve
    (tmp_path/'b.BASIS').write_text(basis_text(x, b.names, points*(1 + fill), repr(dwell)))
    back = read_basis(tmp_path/'b.BASIS')
    close(b, back, 3e-5)
    assert any('halved' in n for n in back.notes) == halve


def test_basis_scale_shift_and_fused_columns(tmp_path):
    b = toy()
    n = 1024
    x = b.fids.conj().resolve_conj().numpy().astype(complex)
    k = 4  # LCModel moves by +ISHIFT points to higher ppm; store it that much too low
    low = x*np.exp(2j*np.pi*k*np.arange(512)/n)
    (tmp_path/'b.basis').write_text(basis_text(low, b.names, n, '5.0E-04', f'ISHIFT={k} TRAMP=2. VOLUME=4. CONC=.25', 2., '%.6E%+.6E\n').replace('E-04%', ''))
    back = read_basis(tmp_path/'b.basis')
    close(b, back, 1e-5)
    assert back.acquisition.dwell_time == 5e-4


def test_conjugated_basis_is_turned_and_user_overrules(tmp_path):
    b = toy()
    write_basis(b.replace(b.fids.conj()), tmp_path/'c.BASIS')
    back = read_basis(tmp_path/'c.BASIS')
    close(b, back)
    assert any('conjugated' in n for n in back.notes)
    kept = read_basis(tmp_path/'c.BASIS', conjugate=True)
    close(b.replace(b.fids.conj()), kept)
    np.save(tmp_path/'c.npy', b.fids.conj().resolve_conj().numpy())
    close(b, read_basis(tmp_path/'c.npy', names=b.names, **GIVEN))


def test_jmrui_sign_is_detected_or_asked(tmp_path):
    x = brain()
    for stored in (x.fids, x.fids.conj()):
        write_spectra(x.replace(stored), tmp_path/'x.txt')
        text = (tmp_path/'x.txt').read_text().replace('AdditionalInfo: deepmrs, conjugate sign', 'AdditionalInfo: ')
        (tmp_path/'x.txt').write_text(text)
        back = read_spectra(tmp_path/'x.txt')
        close(x, back)
        assert len(back.notes) == 1
    write_spectra(Spectra(noise((1, 512)), acquisition=ACQ), tmp_path/'n.txt')
    (tmp_path/'n.txt').write_text((tmp_path/'n.txt').read_text().replace('conjugate sign', ''))
    with pytest.raises(InputError, match='conjugate=True or False'): read_spectra(tmp_path/'n.txt')
    assert torch.equal(read_spectra(tmp_path/'n.txt', conjugate=True).fids, noise((1, 512)))


def test_jmrui_two_columns_many_signals_other_nucleus(tmp_path):
    text = ('jMRUI Data Textfile\n\nFilename: p.txt\n\nPointsInDataset: 3\nDatasetsInFile: 2\nSamplingInterval: 2.5E-1\nZeroOrderPhase: 1E1\nBeginTime: 0E0\n'
            'TransmitterFrequency: 4.98E7\nMagneticField: 2.89E0\nTypeOfNucleus: 1E0\nSignalNames: a;b\n\n\nSignal only\nsig(real)\tsig(imag)\n'
            'Signal 1 out of 2 in file\n1E0\t2E0\n3E0\t4E0\n5E0\t6E0\nSignal 2 out of 2 in file\n7E0\t8E0\n9E0\t1E1\n1.1E1\t1.2E1\n')
    (tmp_path/'p.txt').write_text(text)
    x = read_spectra(tmp_path/'p.txt', conjugate=False)
    assert x.acquisition.nucleus == '31P' and x.acquisition.centre_ppm == 0 and x.acquisition.dwell_time == 2.5e-4 and x.names == ['a', 'b']
    assert x.fids[1, 2] == 11 + 12j and 'zero-order phase' in x.notes[0]


def test_raw_as_lcmodel_scales_and_turns_it(tmp_path):
    (tmp_path/'a.RAW').write_text(" $NMID\n ID='/tmp/R/f', FMTDAT='(2E15.6)'\n VOLUME=2\n TRAMP=1\n BRUKER=T $END\n 2. 4.\n 6. 8.\n")
    x = read_spectra(tmp_path/'a.RAW', **GIVEN)
    assert x.fids.tolist() == [[1 + 2j, 3 + 4j]]
    two = read_spectra(tmp_path/'a.RAW', **GIVEN, points=2)
    assert len(two) == 1
    with pytest.raises(InputError, match='multiple'): read_spectra(tmp_path/'a.RAW', **GIVEN, points=3)


@pytest.mark.parametrize('dtype', [np.complex64, np.complex128])
def test_mat_precisions_and_orientation(tmp_path, dtype):
    x = brain(3)
    data = x.fids.conj().resolve_conj().numpy().T.astype(dtype)
    scipy.io.savemat(tmp_path/'a.mat', {'data': data})
    close(x, read_spectra(tmp_path/'a.mat', **GIVEN))
    scipy.io.savemat(tmp_path/'b.mat', {'spectra': data.T, 'other': np.eye(3)})
    back = read_spectra(tmp_path/'b.mat', **GIVEN)
    close(x, back)
    assert any('other axis' in n for n in back.notes)
    scipy.io.savemat(tmp_path/'c.mat', {'u': data, 'v': data})
    close(x, read_spectra(tmp_path/'c.mat', key='u', **GIVEN))
    with pytest.raises(InputError, match='name the one'): read_spectra(tmp_path/'c.mat', **GIVEN)


@pytest.mark.parametrize('kind', ['f8', 'f4', 'i2', 'i4'])
def test_mat_v73_and_integers(tmp_path, kind):
    x = brain(3)
    data = np.round(x.fids.conj().resolve_conj().numpy()*1000)
    pair = np.zeros((3, 512), dtype=[('real', kind), ('imag', kind)])  # HDF5 holds MATLAB's [N, B] as [B, N]
    pair['real'], pair['imag'] = data.real/(data.real.max()/3e4), data.imag/(data.real.max()/3e4)
    with h5py.File(tmp_path/'a.mat', 'w', userblock_size=512) as f:
        d = f.create_dataset('data', data=pair)
        d.attrs['MATLAB_class'] = np.bytes_({'f8': b'double', 'f4': b'single', 'i2': b'int16', 'i4': b'int32'}[kind])
    with open(tmp_path/'a.mat', 'r+b') as f:
        f.write(b'MATLAB 7.3 MAT-file, Platform: GLNXA64'.ljust(124) + b'\x00\x02IM')
    y = read_spectra(tmp_path/'a.mat', **GIVEN)
    close(Spectra(x.fids/x.fids.abs().max(), acquisition=ACQ), Spectra(y.fids/y.fids.abs().max(), acquisition=ACQ), 2e-3)


def test_mat_integer_parts(tmp_path):
    "MATLAB stores whole numbers as integers inside a double array; real and imaginary part may also lie along a last axis of 2"
    x = np.round(brain(1).fids.conj().resolve_conj().numpy()*100)
    pair = np.stack([x.real.T, x.imag.T], -1).astype(np.int16)
    scipy.io.savemat(tmp_path/'i.mat', {'data': pair})
    y = read_spectra(tmp_path/'i.mat', **GIVEN)
    assert np.array_equal(y.fids.conj().resolve_conj().numpy(), x)


def test_given_numbers_win_and_say_so(tmp_path):
    write_spectra(brain(), tmp_path/'x.nii.gz')
    y = read_spectra(tmp_path/'x.nii.gz', dwell_time=4e-4, centre_ppm=4.7, echo_time=0.03)
    assert y.acquisition.dwell_time == 4e-4 and y.acquisition.centre_ppm == 4.7
    assert len(y.notes) == 2 and 'dwell time' in ' '.join(y.notes) and 'centre ppm' in ' '.join(y.notes)


def test_basis_of_one_and_resampled_to_the_data(tmp_path):
    one = toy(Acquisition(2.5e-4, 123.2, 2048)).select(['NAA'])
    write_basis(one, tmp_path/'one.BASIS')
    assert len(read_basis(tmp_path/'one.BASIS')) == 1
    got = match_basis(read_basis(tmp_path/'one.BASIS'), ACQ)
    assert 'resampled' in got.notes[-1]
    with pytest.raises(InputError, match='1 %'): match_basis(one, ACQ.replace(spectrometer_frequency=127.7))
    with pytest.raises(InputError, match='nucleus'): match_basis(one, ACQ.replace(nucleus='31P'))


def test_many_points_and_the_limit(tmp_path):
    np.savez(tmp_path/'long.npz', fids=noise((1, 1_000_000)).numpy())
    assert read_spectra(tmp_path/'long.npz', dwell_time=1e-5, spectrometer_frequency=123.2, conjugate=False).acquisition.points == 1_000_000
    np.savez(tmp_path/'longer.npz', fids=np.ones((1, MAX_POINTS + 1), np.complex64))
    with pytest.raises(InputError, match=str(MAX_POINTS)): read_spectra(tmp_path/'longer.npz', **GIVEN)


def test_several_files_and_a_misfit(tmp_path):
    for i in range(3): write_spectra(brain(), tmp_path/f'sub-{i}.nii.gz')
    x = read_spectra([tmp_path/f'sub-{i}.nii.gz' for i in range(3)])
    assert x.names == ['sub-0', 'sub-1', 'sub-2'] and len(x) == 3
    write_spectra(brain(acq=ACQ.replace(points=256)), tmp_path/'other.nii.gz')
    with pytest.raises(InputError, match='otherwise'): read_spectra([tmp_path/'sub-0.nii.gz', tmp_path/'other.nii.gz'])


# ---- NIfTI-MRS dimensions and header

def nifti(tmp_path, shape, tags=(), dwell=5e-4, unit='sec', version=2, drop=(), **meta):
    cls = nibabel.Nifti2Image if version == 2 else nibabel.Nifti1Image
    img = cls(noise(shape).numpy(), np.eye(4))
    img.header['pixdim'][4] = dwell
    img.header['intent_name'] = b'mrs_v0_11'
    img.header.set_xyzt_units('mm', unit)
    head = {'SpectrometerFrequency': [123.2], 'ResonantNucleus': ['1H']} | {f'dim_{5 + i}': t for i, t in enumerate(tags)} | meta
    for k in drop: head.pop(k)
    img.header.extensions.append(nibabel.nifti1.Nifti1Extension(44, json.dumps(head).encode()))
    nibabel.save(img, tmp_path/'d.nii.gz')
    return tmp_path/'d.nii.gz'


@pytest.mark.parametrize('tag', ['DIM_COIL', 'DIM_DYN', 'DIM_EDIT', 'DIM_INDIRECT_0'])
def test_uncombined_dimensions_are_refused_by_name(tmp_path, tag):
    with pytest.raises(InputError, match=tag): read_spectra(nifti(tmp_path, (1, 1, 1, 64, 4), [tag]))
    assert len(read_spectra(nifti(tmp_path, (1, 1, 1, 64, 1), [tag]))) == 1


def test_averages_on_request_and_default_tags(tmp_path):
    path = nifti(tmp_path, (2, 1, 1, 64, 1, 4), ['DIM_COIL', 'DIM_DYN'])
    stored = np.asarray(nibabel.load(path).dataobj).conj()[:, 0, 0, :, 0]
    assert np.allclose(read_spectra(path, dynamics='average').fids.numpy(), stored.mean(-1), atol=1e-6)
    each = read_spectra(path, dynamics='separate')
    assert each.shape == (2, 1, 1, 4) and np.array_equal(each.fids[5].numpy(), stored[1, :, 1])
    with pytest.raises(InputError, match='DIM_COIL'): read_spectra(nifti(tmp_path, (1, 1, 1, 64, 4)))
    with pytest.raises(InputError, match='dynamics'): read_spectra(path, dynamics='sum')


def test_nifti_units_and_single_precision_header(tmp_path):
    assert read_spectra(nifti(tmp_path, (1, 1, 1, 64), dwell=0.25, unit='msec', version=1)).acquisition.dwell_time == pytest.approx(2.5e-4, rel=1e-12)
    assert read_spectra(nifti(tmp_path, (1, 1, 1, 64), dwell=250, unit='usec')).acquisition.dwell_time == pytest.approx(2.5e-4, rel=1e-12)
    assert read_spectra(nifti(tmp_path, (1, 1, 1, 64), ResonantNucleus=['31P'])).acquisition.centre_ppm == 0
    assert read_spectra(nifti(tmp_path, (1, 1, 1, 64), SpecFreqChemShift=4.7, RxOffset=-1.7)).acquisition.centre_ppm == pytest.approx(3.0)
    with pytest.raises(InputError, match='contradicts'): read_spectra(nifti(tmp_path, (1, 1, 1, 64), SpectralWidth=4000.))
    with pytest.raises(InputError, match='hz'): read_spectra(nifti(tmp_path, (1, 1, 1, 64), unit='hz'))
    path = nifti(tmp_path, (1, 1, 1, 64), drop=['SpectrometerFrequency'])
    with pytest.raises(InputError, match='spectrometer_frequency'): read_spectra(path)
    assert len(read_spectra(path, spectrometer_frequency=123.2)) == 1


def test_plain_nifti_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path/'t1.nii.gz')
    with pytest.raises(InputError, match='no NIfTI-MRS'): read_spectra(tmp_path/'t1.nii.gz')


# ---- bad files

@few
@given(ending=st.sampled_from(['nii.gz', 'nii', 'txt', 'mat', 'npz', 'npy']), part=st.floats(0, 0.97))
def test_truncated_spectra_are_refused(tmp_path, ending, part):
    write_spectra(brain(), tmp_path/f'x.{ending}')
    whole = (tmp_path/f'x.{ending}').read_bytes()
    (tmp_path/f'x.{ending}').write_bytes(whole[:int(len(whole)*part)])
    with pytest.raises(InputError): read_spectra(tmp_path/f'x.{ending}', **GIVEN)


@pytest.mark.parametrize('cut', [1, 4, 8, 12])
def test_gzip_checksum_is_compared(tmp_path, cut):
    write_spectra(brain(), tmp_path/'x.nii.gz')
    whole = bytearray((tmp_path/'x.nii.gz').read_bytes())
    (tmp_path/'short.nii.gz').write_bytes(whole[:-cut])
    whole[len(whole)//2] ^= 1 << (cut % 7)
    (tmp_path/'flipped.nii.gz').write_bytes(whole)
    for name in ('short', 'flipped'):
        with pytest.raises(InputError, match='cannot be read'): read_spectra(tmp_path/f'{name}.nii.gz')


@settings(few, max_examples=40)
@given(cut=st.integers(2, 200_000))
def test_truncated_basis_is_refused(tmp_path, cut):
    write_basis(toy(), tmp_path/'b.BASIS')
    whole = (tmp_path/'b.BASIS').read_text()
    (tmp_path/'b.BASIS').write_text(whole[:-min(cut, len(whole))])
    try: back = read_basis(tmp_path/'b.BASIS')
    except InputError: return
    assert len(back) < 4 and [n for n in back.names] == list(SHAPES)[:len(back)], 'a cut inside a metabolite was accepted'


@pytest.mark.parametrize('cut', [2, 3, 5])
def test_raw_cut_inside_a_number(tmp_path, cut):
    write_spectra(brain(), tmp_path/'x.RAW')
    text = (tmp_path/'x.RAW').read_text()
    (tmp_path/'x.RAW').write_text(text[:-cut])
    with pytest.raises(InputError, match='cut short'): read_spectra(tmp_path/'x.RAW', **GIVEN)


@few
@given(junk=st.binary(min_size=1, max_size=300), ending=st.sampled_from(['nii.gz', 'nii', 'RAW', 'H2O', 'txt', 'mat', 'npz', 'npy', 'BASIS', 'json']))
def test_junk_is_refused_in_a_sentence(tmp_path, junk, ending):
    (tmp_path/f'j.{ending}').write_bytes(junk)
    with pytest.raises(InputError) as e: (read_basis if ending in ('BASIS', 'json') else read_spectra)(tmp_path/f'j.{ending}', **GIVEN)
    assert str(e.value).endswith('.') and '\n' not in str(e.value)


@pytest.mark.parametrize('value', [np.nan, np.inf, 0])
@pytest.mark.parametrize('ending', ['npy', 'mat', 'npz', 'nii.gz', 'RAW'])
def test_nan_inf_and_zeros_are_refused(tmp_path, value, ending):
    x = brain()
    x.fids[0, 3:9] = value
    if value == 0: x.fids[:] = 0
    write_spectra(x, tmp_path/f'x.{ending}')
    with pytest.raises(InputError, match='zeros' if value == 0 else 'NaN'): read_spectra(tmp_path/f'x.{ending}', **GIVEN)


def test_one_point_and_real_numbers(tmp_path):
    np.save(tmp_path/'one.npy', np.ones((3, 1), complex))
    np.save(tmp_path/'real.npy', np.ones((3, 64)))
    np.save(tmp_path/'words.npy', np.array(['a', 'b']))
    np.save(tmp_path/'pickle.npy', np.array([{'a': 1}], dtype=object), allow_pickle=True)
    for name, why in (('one', '2 are needed'), ('real', 'complex'), ('words', 'no numbers'), ('pickle', 'cannot be read')):
        with pytest.raises(InputError, match=why): read_spectra(tmp_path/f'{name}.npy', **GIVEN)
    with pytest.raises(InputError, match='2 are needed'): read_spectra(nifti(tmp_path, (1, 1, 1, 1)))


def test_bad_basis_sets(tmp_path):
    b = toy()
    x = b.fids.conj().resolve_conj().numpy()
    (tmp_path/'twice.BASIS').write_text(basis_text(x[[0, 1, 1]], ['NAA', 'Cr', 'PCr'], 1024))
    (tmp_path/'names.BASIS').write_text(basis_text(x[:2], ['NAA', 'NAA'], 1024))
    (tmp_path/'nan.BASIS').write_text(basis_text(x*np.nan, b.names, 1024))
    (tmp_path/'volume.BASIS').write_text(basis_text(x, b.names, 1024, more='VOLUME=0.'))
    (tmp_path/'empty').mkdir()
    (tmp_path/'mixed').mkdir(); (tmp_path/'mixed'/'a.json').write_text('{}'); (tmp_path/'mixed'/'a.RAW').write_text('x')
    np.save(tmp_path/'unnamed.npy', b.fids.numpy())
    for path, why in (('twice.BASIS', 'same signal'), ('names.BASIS', 'more than once'), ('nan.BASIS', 'NaN'), ('volume.BASIS', 'positive'), ('empty', 'nothing'),
                      ('mixed', 'one kind'), ('unnamed.npy', 'names'), ('gone.BASIS', 'does not exist')):
        with pytest.raises(InputError, match=why): read_basis(tmp_path/path, **(GIVEN if path.endswith('npy') else {}))
    with pytest.raises(InputError, match='5 names|2 names'): read_basis(tmp_path/'unnamed.npy', names=['a', 'b'], **GIVEN)
    with pytest.raises(InputError, match='basis set'): read_spectra(tmp_path/'twice.BASIS')
    with pytest.raises(InputError, match='folder'): read_spectra(tmp_path/'empty')


# ---- writing

def test_unwritable_places_leave_nothing(tmp_path):
    (tmp_path/'file').write_text('x')
    for path in (tmp_path/'file'/'x.nii.gz', Path('/proc/x.nii.gz'), tmp_path):
        with pytest.raises(InputError): write_spectra(brain(), path)
    with pytest.raises(InputError): write_basis(toy(), tmp_path/'file'/'b.BASIS')
    with pytest.raises(InputError): write_basis(toy(), Path('/proc/folder'))
    with pytest.raises(InputError, match='ending'): write_spectra(brain(), tmp_path/'x.pdf')
    with pytest.raises(InputError, match='one by one'): write_spectra(brain(2), tmp_path/'x.RAW')
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_spectra(brain(), tmp_path/'x.txt')
    before = (tmp_path/'x.txt').read_bytes()
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(dio, '_columns', full)
    with pytest.raises(InputError, match='No space'): write_spectra(brain(), tmp_path/'x.txt')
    assert (tmp_path/'x.txt').read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_full_folder_is_not_overwritten(tmp_path):
    write_basis(toy(), tmp_path/'set')
    with pytest.raises(InputError, match='not an empty folder'): write_basis(toy(), tmp_path/'set')
    assert len(list((tmp_path/'set').iterdir())) == 4


# ---- asking, own readers

def test_describe_says_what_is_missing(tmp_path):
    write_spectra(brain(), tmp_path/'x.RAW')
    said = describe_file(tmp_path/'x.RAW')
    assert 'dwell time    not in the file' in said and '123.2 MHz' in said and '512 points' in said
    write_basis(toy(), tmp_path/'set')
    assert 'NAA, Cr, GPC, Lac' in describe_file(tmp_path/'set')


def test_own_reader_and_its_checker(tmp_path):
    (tmp_path/'x.own').write_text('1 2')
    good = lambda p, **k: Loaded(np.array([[1 + 2j, 3j]]), dict(GIVEN), False)
    check_reader(good, tmp_path/'x.own')
    for bad in (lambda p, **k: 1, lambda p, **k: Loaded(np.ones((1, 2))), lambda p, **k: Loaded(np.ones((1, 2), complex), {'dwell': 1}),
                lambda p, **k: Loaded(np.ones((1, 2), complex), names=['a', 'b'])):
        with pytest.raises(InputError): check_reader(bad, tmp_path/'x.own')
    register_reader('.own', good)
    try: assert read_spectra(tmp_path/'x.own', conjugate=False).fids.tolist() == [[1 + 2j, 3j]]
    finally: del dio.READERS['.own']


def test_vendor_without_spec2nii_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path/'meas.dat').write_bytes(b'x'*10)
    monkeypatch.setattr(dio, '_spec2nii', lambda: None)
    with pytest.raises(InputError, match=r'pip install "deepmrs\[vendor\]"'): read_spectra(tmp_path/'meas.dat')


@pytest.mark.skipif(dio._spec2nii() is None, reason='spec2nii is not installed')
@pytest.mark.parametrize('name', ['meas.dat', 'x.rda', 'x.IMA', 'P1.7', 'x.sdat'])
def test_junk_from_a_scanner_is_refused(tmp_path, name):
    (tmp_path/name).write_bytes(b'not a scanner file')
    with pytest.raises(InputError): read_spectra(tmp_path/name)

# ---- one test for each kind of fault that public files showed

def refuses(match, path, read=read_spectra, **given):
    with pytest.raises(InputError, match=match) as e: read(path, **given)
    assert '\n' not in str(e.value) and len(str(e.value)) < 600


def stored_basis(tmp_path, fids, names, n=1024, **options):
    (tmp_path/'b.BASIS').write_text(basis_text(fids.conj().resolve_conj().numpy().astype(complex), names, n, fmt='%17.8E%17.8E\n', **options))
    return tmp_path/'b.BASIS'


def test_scrambled_basis_is_refused(tmp_path):
    refuses('scrambled', stored_basis(tmp_path, toy().fids, list(SHAPES), dwell='-5.0E-04'), read_basis)


@pytest.mark.parametrize('place', [0., -0.03, 0.12])
@pytest.mark.parametrize('moved', [0., 0.05])
@pytest.mark.parametrize('gaussian', [0., 5.])
def test_reference_line_decides_nothing(tmp_path, place, moved, gaussian):
    "A singlet near 0 ppm in every metabolite, taller than its lines, is taken out; an offset of the set is still found"
    b = toy(damping=9.)
    t = ACQ.time_axis(dtype=torch.float64)
    line = 40*torch.exp((2j*math.pi*ACQ.to_hz(place) - 6)*t - (gaussian*t)**2)
    shift = torch.exp(2j*math.pi*moved*ACQ.spectrometer_frequency*t)
    back = read_basis(stored_basis(tmp_path, (b.fids + line)*shift, b.names))
    assert any('reference line' in n for n in back.notes)
    assert float((back.fids - b.fids*shift).abs().max()/b.fids.abs().max()) < 2e-3
    assert abs(reference_offset(back)[0] - moved) < 3e-3


def test_a_set_without_reference_line_stays_as_it_is(tmp_path):
    b = Basis(torch.cat([toy().fids, toy().fids[:1].roll(3)]), [*SHAPES, 'DSS'], acquisition=ACQ)
    dss = 9*torch.exp((2j*math.pi*ACQ.to_hz(0.) - 6)*ACQ.time_axis(dtype=torch.float64))
    b.fids[-1] = dss.to(b.fids)  # a signal of its own, as in a phantom
    back = read_basis(stored_basis(tmp_path, b.fids, b.names))
    close(b, back, 1e-5)
    assert not any('reference' in n for n in back.notes)


@pytest.mark.parametrize('halve', [False, True])
def test_first_point_is_judged_by_the_metabolites_not_by_the_loudest(tmp_path, halve):
    b = toy(damping=9.)
    mac = 400*torch.exp((2j*math.pi*ACQ.to_hz(0.9) - 90)*ACQ.time_axis(dtype=torch.float64))
    mac[0] *= 0.5 if not halve else 1.  # against the others
    x = torch.cat([b.fids, mac[None].to(b.fids)])
    x[:-1, 0] /= 1 + halve
    back = read_basis(stored_basis(tmp_path, x, [*b.names, 'Mac']))
    assert any('halved' in n for n in back.notes) == halve
    assert torch.allclose(back.fids[:4, 0], b.fids[:, 0], rtol=1e-4)


def test_a_metabolite_that_stands_twice(tmp_path):
    b = toy()
    x, names = torch.cat([b.fids, b.fids[:1]]), [*b.names, 'NAA']
    back = read_basis(stored_basis(tmp_path, x, names))
    assert back.names == b.names and any('NAA stands more than once' in n for n in back.notes)
    other = x.clone()
    other[-1] = b.fids[0].roll(7)
    path = stored_basis(tmp_path, other, names)
    refuses('NAA more than once.*differ.*--drop', path, read_basis)
    assert read_basis(path, drop=['NAA']).names == b.names[1:]
    same = stored_basis(tmp_path, x, [*b.names, 'NAAx'])
    refuses('same signal.*--drop', same, read_basis)
    assert read_basis(same, drop='NAAx').names == b.names


def test_drop_and_keep(tmp_path):
    write_basis(toy(), tmp_path/'b.npz')
    assert read_basis(tmp_path/'b.npz', drop=['Lac', 'gpcho']).names == ['NAA', 'Cr']
    assert read_basis(tmp_path/'b.npz', keep=['Cr', 'NAA']).names == ['NAA', 'Cr']
    refuses('GABA is not in', tmp_path/'b.npz', read_basis, drop=['GABA'])
    refuses('Nothing is left', tmp_path/'b.npz', read_basis, drop=list(SHAPES))


def jmrui_text(x, interval='0.5', frequency='123200000.0', columns='sig(real)\tsig(imag)\tfft(real)\tfft(imag)', heading='Signal {} out of {} in file', rows=2, points=None, many=None, more=''):
    fids = x.fids.conj().resolve_conj().numpy()
    head = (f'jMRUI Data Textfile\n\nFilename: x.txt\n\nPointsInDataset: {points or fids.shape[1]}\nDatasetsInFile: {many or len(fids)}\nSamplingInterval: {interval}\nZeroOrderPhase: 0E0\n'
            f'BeginTime: 0E0\nTransmitterFrequency: {frequency}\nMagneticField: 3E0\nTypeOfNucleus: 0E0\n{more}\n\nSignal and FFT\n{columns}\n')
    for i, f in enumerate(fids):
        head += heading.format(i + 1, len(fids)) + '\n'
        head += ''.join('\t'.join(f'{v:.8E}' for v in (z.real, z.imag, 7., 7.)[:rows]) + '\n' for z in f)
    return head


@pytest.mark.parametrize('change', [dict(), dict(rows=4), dict(columns='sig(real)\tsig(imag)', rows=4), dict(columns='sig(real)\tsig(imag)', rows=2), dict(heading='Signal number: {} out of {} in file'),
                                    dict(interval='0.5 ms', frequency='123.2 MHz', points='512 points'), dict(interval='5E-4 s'), dict(interval='0,5'), dict(interval='500 us', frequency='123200 kHz'),
                                    dict(many=3), dict(more='TypeOfNucleus: 1H')])
def test_jmrui_headings_rows_and_units(tmp_path, change):
    x = brain(2)
    text = jmrui_text(x, **change)
    for ends in ('\n', '\r\n'):
        (tmp_path/'x.txt').write_text(text.replace('\n', ends), newline='')
        y = read_spectra(tmp_path/'x.txt')
        close(x, y)
        assert y.acquisition.dwell_time == pytest.approx(5e-4) and y.acquisition.spectrometer_frequency == pytest.approx(123.2)
    said = ' '.join(y.notes)
    assert ('announces' in said) == ('many' in change or change.get('rows', 2) != 2 + 2*('columns' not in change))


def test_jmrui_that_is_cut_or_in_seconds_is_refused(tmp_path):
    (tmp_path/'x.txt').write_text('\n'.join(jmrui_text(brain()).splitlines()[:-100]))
    refuses('cut short', tmp_path/'x.txt')
    (tmp_path/'x.txt').write_text(jmrui_text(brain(), interval='5.0E-4'))
    refuses('seconds.*--dwell-time', tmp_path/'x.txt')
    assert read_spectra(tmp_path/'x.txt', dwell_time=5e-4).acquisition.dwell_time == 5e-4


def test_two_columns_without_a_header(tmp_path):
    x = brain()
    f = x.fids[0].conj().resolve_conj().numpy()
    np.savetxt(tmp_path/'x.txt', np.stack([f.real, f.imag], 1), fmt='%.9e')
    y = read_spectra(tmp_path/'x.txt', **GIVEN)
    close(x, y)
    refuses('dwell_time', tmp_path/'x.txt')
    (tmp_path/'x.txt').write_text('some words\nand more\n')
    refuses('no jMRUI', tmp_path/'x.txt', **GIVEN)


@pytest.mark.parametrize('head', [" $SEQPAR\n HZPPPM = 123.2\n SEQ = None\n $END\n $NMID ID=svs_1, FMTDAT=(2E17.8)\n VOLUME=1\n TRAMP=1\n $END\n",
                                  "Saved by Bob's R&D tool on day/month/year for $100\n $NMID\n ID='/x/a/b', FMTDAT='(2E17.8)'\n TRAMP=1.\n $END\n",
                                  " $NMID\n ID=/home/x/svs/\n FMTDAT='(2E17.8)'\n $END\n", " &nmid\n ID='a' TRAMP=1. VOLUME=1./\n", " &NMID ID=/home/x TRAMP=1 /\n"])
def test_raw_headers_by_other_programs(tmp_path, head):
    x = brain()
    f = x.fids[0].conj().resolve_conj().numpy()
    (tmp_path/'x.RAW').write_text(head + ''.join(f'{z.real:17.8E}{z.imag:17.8E}\n' for z in f))
    y = read_spectra(tmp_path/'x.RAW', **GIVEN)
    close(x, y)
    assert y.acquisition.sequence is None and y.acquisition.nucleus == '1H'


@pytest.mark.parametrize('ending', ['nii.gz', 'npz', 'mat'])
def test_nan_voxels_are_empty_ones(tmp_path, ending):
    x = brain(6)
    x.fids[1], x.fids[4, 7] = math.nan, math.inf
    write_spectra(x, tmp_path/f'x.{ending}')
    y = read_spectra(tmp_path/f'x.{ending}')
    good = [0, 2, 3, 5]
    assert torch.equal(y.fids[good], x.fids[good]) and not y.fids[[1, 4]].any() and '2 of 6 spectra' in ' '.join(y.notes)
    x.fids[:] = math.nan
    write_spectra(x, tmp_path/f'x.{ending}')
    refuses('NaN', tmp_path/f'x.{ending}')


@pytest.mark.parametrize('field,value,unit,right', [('EchoTime', 35000., 'µs', .035), ('EchoTime', 30., 'ms', .03), ('RepetitionTime', 2000., 'ms', 2.), ('RepetitionTime', 1.5e6, 'µs', 1.5), ('EchoTime', [.03], None, .03),
                                                    ('EchoTime', '0.03', None, .03), ('EchoTime', -5., 'left out', None), ('EchoTime', 'long', 'left out', None), ('MixingTime', {'a': 1}, 'left out', None)])
def test_header_fields_that_nothing_needs_do_not_stop_the_run(tmp_path, field, value, unit, right):
    path = nifti(tmp_path, (1, 1, 1, 64), **{field: value})
    name = {'EchoTime': 'echo_time', 'RepetitionTime': 'repetition_time', 'MixingTime': 'mixing_time'}[field]
    x = read_spectra(path)
    got = getattr(x.acquisition, name)
    assert got == (right if right is None else pytest.approx(right)) and (unit is None) == (not x.notes) and (unit or '') in ' '.join(x.notes)
    if name != 'mixing_time': assert getattr(read_spectra(path, **{name: .04}).acquisition, name) == .04


@pytest.mark.parametrize('change,given,match', [(dict(dwell=500.), dict(dwell_time=5e-4), '500 s.*µs.*0.0005.*--dwell-time'), (dict(dwell=.5), dict(dwell_time=5e-4), '--dwell-time'), (dict(unit='hz'), dict(dwell_time=5e-4), 'hz'),
                                                (dict(SpectralWidth=4000.), dict(dwell_time=5e-4), 'contradicts'), (dict(SpectrometerFrequency=[123.2e6]), dict(spectrometer_frequency=123.2), 'Hz.*123.2.*--spectrometer-frequency'),
                                                (dict(SpectrometerFrequency=['fast']), dict(spectrometer_frequency=123.2), 'spectrometer frequency'), (dict(SpecFreqChemShift=1e5), dict(centre_ppm=4.65), '--centre-ppm')])
def test_every_header_field_that_stops_the_run_can_be_overruled(tmp_path, change, given, match):
    path = nifti(tmp_path, (1, 1, 1, 64), **change)
    refuses(match, path)
    x = read_spectra(path, **given)
    assert x.acquisition.dwell_time == pytest.approx(5e-4) and x.acquisition.spectrometer_frequency == pytest.approx(123.2) and x.acquisition.centre_ppm == 4.65


@pytest.mark.parametrize('spelt,nucleus,centre', [('1H', '1H', 4.65), ('P31', '31P', 0), ('31p', '31P', 0), ('2H', '2H', 4.8), ('13C', '13C', 0), ('proton', '1H', 4.65)])
def test_nuclei_and_their_centres(tmp_path, spelt, nucleus, centre):
    path = nifti(tmp_path, (1, 1, 1, 64), ResonantNucleus=[spelt])
    acq = read_spectra(path).acquisition
    assert acq.nucleus == nucleus and acq.centre_ppm == centre
    assert read_spectra(nifti(tmp_path, (1, 1, 1, 64), ResonantNucleus=[spelt], SpecFreqChemShift=2.3)).acquisition.centre_ppm == 2.3, 'what is stated wins'
    (tmp_path/'x.RAW').write_text(" $NMID FMTDAT='(2E13.5)' $END\n 1.0 2.0\n 3.0 4.0\n")
    raw = read_spectra(tmp_path/'x.RAW', nucleus=spelt, **GIVEN).acquisition
    assert raw.nucleus == nucleus and raw.centre_ppm == centre


def phosphorus(names=('PCr', 'Pi', 'gATP')):
    acq = Acquisition(2e-4, 120.3, 512, nucleus='31P')
    t = acq.time_axis(dtype=torch.float64)
    fids = torch.stack([torch.exp((2j*math.pi*acq.to_hz(p) - 20)*t) for p in (0., 4.8, -2.5)])
    return Basis(fids, list(names), acquisition=acq)


def test_a_basis_of_another_nucleus_is_recognised_by_its_names(tmp_path):
    b = phosphorus()
    for name in ('b.BASIS', 'folder'):
        write_basis(b, tmp_path/name)
        back = read_basis(tmp_path/name)
        assert back.acquisition.nucleus == '31P' and back.acquisition.centre_ppm == 0 and any('31P' in n for n in back.notes)
        close(b, back, 1e-5)
    write_basis(phosphorus(('a', 'b', 'c')), tmp_path/'c.BASIS')
    assert read_basis(tmp_path/'c.BASIS').acquisition.nucleus == '1H'
    close(b, read_basis(tmp_path/'c.BASIS', nucleus='31P'), 1e-5)


@pytest.mark.parametrize('turned', [False, True])
def test_a_basis_set_shows_which_way_round_the_lines_are(tmp_path, turned):
    b = phosphorus()
    x = (torch.tensor([4., 1., 3.]).to(b.fids) @ b.fids)[None] + 0.05*noise((1, 512))
    x = Spectra(x, acquisition=b.acquisition)
    stored = x.replace(x.fids.conj() if turned else x.fids)
    text = jmrui_text(stored, interval='0.2', frequency='120300000').replace('MagneticField: 3E0', 'MagneticField: 6.98')
    (tmp_path/'x.txt').write_text(text)
    refuses('conjugate', tmp_path/'x.txt')
    close(x, read_spectra(tmp_path/'x.txt', basis=b))


@pytest.mark.parametrize('tall', [20., 200.])
@pytest.mark.parametrize('width', [4., 25.])
def test_notes_on_conjugation_agree_when_water_towers_over_the_lines(tmp_path, tall, width):
    x = brain()
    t = ACQ.time_axis()
    x = x.replace(x.fids + tall*float(x.fids[0, 0].abs())*torch.exp((2j*math.pi*9 - math.pi*width)*t + 0.6j))
    for turned in (False, True):
        fids = x.fids.conj().resolve_conj() if turned else x.fids
        assert looks_conjugated(fids, ACQ) is turned
        (tmp_path/'x.txt').write_text(jmrui_text(x.replace(fids), rows=4))
        y = read_spectra(tmp_path/'x.txt')
        close(x, y)
        assert len(y.notes) == 1 and 'lines of x.txt show' in y.notes[0]


# ---- MATLAB

def struct_of(x, **more):
    return dict(fids=x.fids.conj().resolve_conj().numpy().T.astype(np.complex128), dwelltime=5e-4, txfrq=123.2e6, te=30., tr=2000.) | more


@pytest.mark.parametrize('packed', [False, True])
def test_structs_of_matlab_tools(tmp_path, packed):
    x, b = brain(2), toy()
    scipy.io.savemat(tmp_path/'x.mat', {'out': struct_of(x)}, do_compression=packed)
    y = read_spectra(tmp_path/'x.mat')
    close(x, y)
    assert y.acquisition.echo_time == pytest.approx(.03) and y.acquisition.repetition_time == pytest.approx(2) and 'struct' in ' '.join(y.notes)
    scipy.io.savemat(tmp_path/'b.mat', {'BASIS': dict(fids=b.fids.numpy().T, name=np.array(b.names, dtype=object)[None], Bo=123.2/42.577, spectralwidth=2000., te=30.)}, do_compression=packed)
    close(b, read_basis(tmp_path/'b.mat'))
    scipy.io.savemat(tmp_path/'n.mat', {'thing': dict(a=1, b='text')})
    refuses('struct thing with the fields a, b', tmp_path/'n.mat', **GIVEN)
    scipy.io.savemat(tmp_path/'c.mat', {'out': struct_of(x, dims=dict(t=1, coils=2, averages=0))})
    refuses('2 coils', tmp_path/'c.mat')


def test_structs_in_v73(tmp_path):
    x = brain(2)
    pair = np.zeros((2, 512), dtype=[('real', 'f8'), ('imag', 'f8')])
    pair['real'], pair['imag'] = x.fids.real, -x.fids.imag
    with h5py.File(tmp_path/'x.mat', 'w') as f:
        g = f.create_group('out')
        g['fids'], g['dwelltime'], g['txfrq'] = pair, [[5e-4]], [[123.2e6]]
    close(x, read_spectra(tmp_path/'x.mat'))


def test_mat5_agrees_with_scipy(tmp_path):
    g = np.random.default_rng(0)
    values = {'a': g.normal(size=(3, 4, 2)), 'b': g.normal(size=(5, 1)) + 1j, 'c': np.arange(6, dtype=np.int16)[None], 'd': np.ones((2, 2), np.complex64), 'e': np.array([[np.inf + 1j]]), 'text': 'Grüße', 'none': np.zeros((0, 3)),
              'flag': np.array([[True, False]]), 'sparse': scipy.sparse.eye(3).tocsc()}
    for packed in (False, True):
        scipy.io.savemat(tmp_path/'x.mat', values, do_compression=packed)
        ours, theirs = dio.read_mat5((tmp_path/'x.mat').read_bytes(), 'x'), scipy.io.loadmat(tmp_path/'x.mat')
        for k in 'abcde': assert np.array_equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype, k
        assert ours['text'] == 'Grüße' and ours['none'].shape == (0, 3) and ours['sparse'] is None
    scipy.io.savemat(tmp_path/'v4.mat', {'data': values['b']*np.exp(-np.arange(5)[:, None])}, format='4')
    assert read_spectra(tmp_path/'v4.mat', **GIVEN).acquisition.points == 5


def test_damaged_mat_never_ends_the_interpreter(tmp_path):
    "Every byte of the structure flipped: a sentence or numbers, within this process and at once"
    x = brain(2)
    scipy.io.savemat(tmp_path/'x.mat', {'out': struct_of(x.replace(x.fids[:, :40])), 'cells': np.array(['a', 'b'], dtype=object)})
    whole = (tmp_path/'x.mat').read_bytes()
    g, read = np.random.default_rng(1), 0
    for i in range(1500):
        bad = bytearray(whole)
        at = int(g.integers(124, len(bad)))
        bad[at] ^= 1 << int(g.integers(8))
        try: dio.read_mat5(bytes(bad[:len(bad) if i % 3 else at]), 'x.mat')
        except InputError: continue
        read += 1
    assert 100 < read < 1490


def test_damaged_hdf_never_ends_the_interpreter(tmp_path):
    with h5py.File(tmp_path/'x.mat', 'w') as f:
        f['data'], f['out/a'] = np.ones((2, 40)), [1., 2.]
        f.create_dataset('z', data=np.arange(1000.), chunks=(100,), compression='gzip')
    whole, g = (tmp_path/'x.mat').read_bytes(), np.random.default_rng(3)
    for _ in range(12):
        bad = bytearray(whole)
        for at in g.integers(8, 4200, 3): bad[at] ^= 1 << int(g.integers(8))
        (tmp_path/'y.mat').write_bytes(bad)
        try: assert len(read_spectra(tmp_path/'y.mat', **GIVEN)) == 1
        except InputError as e: assert '\n' not in str(e)


# ---- hostile sizes

def hostile(tmp_path, kind):
    "A small file that declares gigabytes"
    path = tmp_path/f'x.{kind.split()[0]}'
    if kind == 'mat':
        scipy.io.savemat(path, {'data': np.ones((3, 5), complex)})
        whole = bytearray(path.read_bytes())
        at = whole.index(np.array([3, 5], '<i4').tobytes())
        whole[at:at + 8] = np.array([30000, 30000], '<i4').tobytes()
        path.write_bytes(whole)
    elif kind == 'mat cells':
        scipy.io.savemat(path, {'data': np.array(['a', 'b'], dtype=object)})
        whole = bytearray(path.read_bytes())
        at = whole.index(np.array([1, 2], '<i4').tobytes())
        whole[at:at + 8] = np.array([2**15, 2**15], '<i4').tobytes()
        path.write_bytes(whole)
    elif kind == 'mat v7.3':
        with h5py.File(path, 'w') as f: f.create_dataset('data', (2**16, 2**16), 'c16', chunks=(64, 64))
    elif kind == 'npy':
        with open(path, 'wb') as f:
            np.lib.format.write_array_header_1_0(f, dict(descr='<c8', fortran_order=False, shape=(10**9, 10)))
            f.write(b'0'*100)
    elif kind == 'npz':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z, z.open('fids.npy', 'w') as f:
            np.lib.format.write_array_header_1_0(f, dict(descr='<c8', fortran_order=False, shape=(10**9, 10)))
    else:
        header = nibabel.Nifti2Header()
        header.set_data_dtype(np.complex64)
        header.set_data_shape((100, 100, 40, 1024) if kind == 'nii.gz' else (1000, 1000, 1000, 1024))
        opener = gzip.open if kind.endswith('gz') else open
        with opener(path, 'wb') as f:
            f.write(header.binaryblock + b'\0'*4)
            if kind == 'nii.gz':
                for _ in range(60): f.write(b'\0'*2**22)
    return path


@pytest.mark.parametrize('kind', ['mat', 'mat cells', 'mat v7.3', 'npy', 'npz', 'nii.gz', 'nii'])
def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path, kind):
    path = hostile(tmp_path, kind)
    tracemalloc.start()
    try:
        refuses('declare|damaged', path, **GIVEN)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally: tracemalloc.stop()


def test_more_than_the_header_says_is_refused(tmp_path):
    write_spectra(brain(), tmp_path/'x.nii.gz')
    with gzip.open(tmp_path/'x.nii.gz') as f: whole = f.read()
    with gzip.open(tmp_path/'y.nii.gz', 'wb') as f: f.write(whole + b'\0'*2**21)
    refuses('more than its header says', tmp_path/'y.nii.gz')


@pytest.mark.parametrize('ending', ['npy', 'npz', 'mat'])
def test_big_endian_arrays(tmp_path, ending):
    x = brain(2)
    fids = x.fids.numpy().astype('>c16')
    if ending == 'npy': np.save(tmp_path/'x.npy', fids)
    elif ending == 'npz': np.savez(tmp_path/'x.npz', fids=fids)
    else: scipy.io.savemat(tmp_path/'x.mat', {'data': fids.conj().T})
    close(x, read_spectra(tmp_path/f'x.{ending}', **GIVEN))
    close(x, Spectra(fids, acquisition=ACQ))


# ---- files without their content, wrong kinds of values

def test_pointer_files_are_named(tmp_path):
    (tmp_path/'a.nii.gz').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n')
    (tmp_path/'b.nii.gz').symlink_to('../.git/annex/objects/Qx/1k/b.nii.gz')
    (tmp_path/'c.BASIS').write_text('/annex/objects/SHA256E-s12--ab.BASIS\n')
    (tmp_path/'set').mkdir(); (tmp_path/'set'/'NAA.json').write_text('version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n')
    refuses('git-lfs.*git lfs pull', tmp_path/'a.nii.gz')
    refuses('git-annex.*get', tmp_path/'b.nii.gz')
    refuses('git-annex', tmp_path/'c.BASIS', read_basis)
    refuses('git-lfs', tmp_path/'set', read_basis)
    (tmp_path/'d.nii.gz').write_bytes(b'')
    refuses('empty', tmp_path/'d.nii.gz')


@pytest.mark.parametrize('change', [dict(basis_re='abc'), dict(basis_re=[1, 'x']), dict(basis_im=[1.]), dict(basis_re=None), dict(basis_dwell='fast'), dict(basis_dwell=[1, 2]), dict(basis_centre={}), dict(basis_dwell=None)])
def test_wrong_kinds_of_values_in_a_basis_file(tmp_path, change):
    fid = toy().fids[0]
    good = dict(basis_re=fid.real.tolist(), basis_im=(-fid.imag).tolist(), basis_dwell=5e-4, basis_centre=123.2, basis_name='NAA')
    (tmp_path/'set').mkdir()
    (tmp_path/'set'/'a.json').write_text(json.dumps({'basis': good | change}))
    refuses('.', tmp_path/'set', read_basis)


@pytest.mark.parametrize('change', [dict(names='NAA'), dict(names=5), dict(shape='x'), dict(shape=[0]), dict(shape=[3]), dict(dwell_time='x')])
def test_wrong_kinds_of_values_beside_an_array(tmp_path, change):
    np.savez(tmp_path/'x.npz', fids=brain(2).fids.numpy(), meta=json.dumps(GIVEN | change))
    refuses('.', tmp_path/'x.npz')
    np.savez(tmp_path/'x.npz', fids=brain(2).fids.numpy(), meta='[1, 2]')
    refuses('no fields', tmp_path/'x.npz')


@pytest.mark.parametrize('change', [dict(echo_time=[1, 2]), dict(nucleus=[1]), dict(nucleus=2.5), dict(sequence=5), dict(repetition_time={})])
def test_other_wrong_kinds_are_left_out(tmp_path, change):
    np.savez(tmp_path/'x.npz', fids=brain(2).fids.numpy(), meta=json.dumps(GIVEN | change))
    acq = read_spectra(tmp_path/'x.npz').acquisition
    assert acq.echo_time is None and acq.nucleus == '1H' and acq.sequence is None and acq.repetition_time is None
    assert describe_file(tmp_path/'x.npz')


def test_settings_beside_the_files_of_a_basis_set(tmp_path):
    write_basis(toy(), tmp_path/'set')
    (tmp_path/'set'/'settings.json').write_text('{"B0": 3}')
    back = read_basis(tmp_path/'set')
    close(toy(), back)
    assert any('settings.json' in n and 'passed over' in n for n in back.notes)
    (tmp_path/'other').mkdir(); (tmp_path/'other'/'a.json').write_text('{"B0": 3}')
    refuses('None of the .json', tmp_path/'other', read_basis)


# ---- dimensions, repetitions, affines

def repeated(tmp_path, fids, tags=('DIM_DYN',), shape=(1, 1, 1), dwell=5e-4, affine=None):
    "A NIfTI-MRS file [*shape, N, K] of FIDs [V, K, N] in the in-memory sign"
    data = np.moveaxis(np.asarray(fids).conj().reshape(*shape, *fids.shape[1:]), -1, 3)
    img = dio.nifti_image(nibabel.Nifti2Image, data.astype(np.complex64), np.eye(4) if affine is None else affine)
    img.header['pixdim'][4], img.header['intent_name'] = dwell, b'mrs_v0_11'
    img.header.set_xyzt_units('mm', 'sec')
    head = {'SpectrometerFrequency': [123.2], 'ResonantNucleus': ['1H'], 'SpecFreqChemShift': 4.65} | {f'dim_{5 + i}': t for i, t in enumerate(tags)}
    img.header.extensions.append(nibabel.nifti1.Nifti1Extension(44, json.dumps(head).encode()))
    nibabel.save(img, tmp_path/'r.nii.gz')
    return tmp_path/'r.nii.gz'


def drifting(many=16, drift=12., sd=1., voxels=1, seed=0):
    "[V, K, N] repetitions of a brain spectrum whose field drifts by `drift` Hz and whose phase wanders"
    g = np.random.default_rng(seed)
    x = brain(voxels, noise=0.).fids.numpy()[:, None]
    t = ACQ.time_axis(dtype=torch.float64).numpy()
    turn = 2*np.pi*np.linspace(-drift/2, drift/2, many)[:, None]*t + g.uniform(-.5, .5, (many, 1))
    return x*np.exp(1j*turn) + sd*(g.normal(size=(voxels, many, len(t))) + 1j*g.normal(size=(voxels, many, len(t))))


@pytest.mark.parametrize('many,sd,voxels', [(2, .3, 1), (16, 1., 1), (64, 3., 1), (8, 1.5, 4)])
def test_repetitions_are_aligned_before_they_are_averaged(tmp_path, many, sd, voxels):
    "12 Hz of drift must neither widen nor lower the lines"
    from deepmrs.preprocess import linewidth
    made = {d: read_spectra(repeated(tmp_path, drifting(many, d, sd, voxels), shape=(voxels, 1, 1)), dynamics='average') for d in (0., 12.)}
    width, height = ({d: f(x) for d, x in made.items()} for f in (lambda x: linewidth(x).mean().item(), lambda x: fid_to_spectrum(torch.nn.functional.pad(x.fids, (0, 7*512))).abs().amax(-1).mean().item()))
    plain = Spectra(drifting(many, 12., sd, voxels).mean(1), acquisition=ACQ)
    wide = linewidth(plain).mean().item()
    assert many == 2 or math.isnan(wide) or wide > width[0.] + 3, 'without alignment the lines are broad'
    assert abs(width[12.] - width[0.]) < 0.2 and abs(height[12.]/height[0.] - 1) < 0.03
    said = ' '.join(made[12.].notes)
    assert f'{many} repetitions' in said and 'aligned in frequency and phase' in said and 'edited' not in said
    assert 11 < float(re.search(r'up to ([\d.]+) Hz', said)[1]) < 13.5


def test_repetitions_of_noise_are_averaged_as_they_are(tmp_path):
    g = np.random.default_rng(0)
    x = g.normal(size=(1, 16, 512)) + 1j*g.normal(size=(1, 16, 512))
    y = read_spectra(repeated(tmp_path, x), dynamics='average')
    assert 'too little signal' in ' '.join(y.notes) and abs(float(y.fids.abs().pow(2).mean())/(2/16) - 1) < 0.3


def test_rows_that_differ_far_more_than_noise_are_said(tmp_path):
    x = drifting(8, 0., .3)
    x[:, 1::2] -= 1.5*9*np.exp((2j*np.pi*ACQ.to_hz(2.008) - 12)*ACQ.time_axis(dtype=torch.float64).numpy())
    said = ' '.join(read_spectra(repeated(tmp_path, x), dynamics='average').notes)
    assert 'far more than averages do' in said and 'separate' in said


def test_a_broken_repetition_is_left_out(tmp_path):
    x = drifting(4, 0., 0.1, 2)
    x[0, 2], x[1] = np.nan, np.nan
    y = read_spectra(repeated(tmp_path, x, shape=(2, 1, 1)), dynamics='average')
    assert len(y) == 2 and not y.fids[1].any() and bool(y.fids[0].any()) and 'left out of the average' in ' '.join(y.notes)


def test_untagged_dimensions_are_said_and_can_be_named(tmp_path):
    path = repeated(tmp_path, drifting(4, 0.), tags=())
    refuses('no tag.*DIM_COIL.*--dimensions', path)
    refuses('no tag', path, dynamics='average')
    assert len(read_spectra(path, dynamics='average', dimensions='DIM_DYN')) == 1
    assert len(read_spectra(path, dynamics='separate', dimensions=['dyn'])) == 4
    assert len(read_spectra(path, dimensions='user')) == 4
    refuses('no dimension', path, dimensions='DIM_NONSENSE')
    two = nifti(tmp_path, (1, 1, 1, 64, 1, 3))
    x = read_spectra(two, dynamics='average')
    assert 'no tag' in ' '.join(x.notes) and 'DIM_DYN' in ' '.join(x.notes)


@pytest.mark.parametrize('shape,tags,grid', [((1, 1, 1, 64, 3, 3, 2), ('DIM_DYN', 'DIM_USER_0', 'DIM_USER_1'), (1, 1, 1, 3, 3, 2)), ((2, 2, 1, 64, 3), ('DIM_DYN',), (2, 2, 1, 3)), ((1, 1, 1, 64, 5), ('DIM_DYN',), (5,)),
                                             ((1, 1, 1, 64, 1, 2, 2), ('DIM_COIL', 'DIM_DYN', 'DIM_USER_2'), (1, 1, 1, 2, 2))])
def test_dimensions_stay_dimensions(tmp_path, shape, tags, grid):
    x = read_spectra(nifti(tmp_path, shape, tags), dynamics='separate')
    kept = tuple(t for t, s in zip(tags, shape[4:]) if s > 1)
    assert x.shape == grid and x.dimensions == kept and x.is_image == (shape[0] > 1)
    for ending in ('nii.gz', 'npz', 'npy'):
        write_spectra(x, tmp_path/f'y.{ending}')
        y = read_spectra(tmp_path/f'y.{ending}', dynamics='separate')
        assert torch.equal(x.fids, y.fids) and y.shape == x.shape and y.dimensions == x.dimensions
    from nifti_mrs.nifti_mrs import NIFTI_MRS
    assert tuple(t for t in NIFTI_MRS(str(tmp_path/'y.nii.gz')).dim_tags if t) == kept


@pytest.mark.parametrize('affine', [np.diag([0., 0., 0., 1.]), np.diag([1., 1., 0., 1.]), np.diag([1e-9, 1e-9, 1e-9, 1.])])
def test_singular_affines(tmp_path, affine):
    x = read_spectra(repeated(tmp_path, drifting(1, 0., 1., 2)[:, :1], tags=(), shape=(2, 1, 1), affine=affine))
    singular = np.linalg.det(affine[:3, :3]) == 0
    assert any('singular' in n for n in x.notes) == singular and np.array_equal(x.affine, affine)
    write_spectra(x, tmp_path/'y.nii.gz')
    y = read_spectra(tmp_path/'y.nii.gz')
    assert torch.equal(x.fids, y.fids) and np.array_equal(y.affine, affine)


# ---- real files

@real
def test_real_voxel_stands_right_and_keeps_its_affine(tmp_path):
    path = DATA/'invivo'/'sub-01_press_act.nii.gz'
    x = read_spectra(path)
    img = nibabel.load(path)
    assert np.array_equal(x.affine, img.affine) and np.array_equal(x.fids[0].numpy(), np.asarray(img.dataobj).reshape(-1).conj())
    mag, ppm = fid_to_spectrum(x.fids)[0].abs(), x.acquisition.ppm_axis()
    near = (ppm > 1.9) & (ppm < 2.15)
    assert abs(float(ppm[near][mag[near].argmax()]) - 2.01) < 0.03 and looks_conjugated(x.fids, x.acquisition) is False
    write_spectra(x, tmp_path/'x.nii.gz')
    y = read_spectra(tmp_path/'x.nii.gz')
    assert np.array_equal(y.affine, img.affine) and torch.equal(x.fids, y.fids) and y.acquisition == x.acquisition
    for ending in ('txt', 'mat'):
        write_spectra(x, tmp_path/f'x.{ending}')
        assert torch.equal(read_spectra(tmp_path/f'x.{ending}', conjugate='auto').fids, x.fids)


@real
def test_real_basis_sets():
    b = read_basis(DATA/'invivo'/'3T_PRESS_Philips_35ms_noMM.BASIS')
    offset, conj = reference_offset(b)
    assert len(b) == 17 and b.acquisition.points == 8192 and not conj and abs(offset + 0.03) < 0.005 and not first_point_halved(b.fids.numpy())
    assert any('halved' in n for n in b.notes) and abs(reference_offset(upright(b))[0]) < 1e-3
    edge = fid_to_spectrum(b.fids)[:, 0].abs() / fid_to_spectrum(b.fids).abs().amax(-1)
    assert edge.max() < 0.01
    names = 'Ala Asp Cr GABA GPC GSH Glc Gln Glu Gly Ins Lac NAA NAAG PCho PCr PE Tau sIns'.split()
    p = read_basis(DATA/'seed'/'basisset.mat', dwell_time=2.5e-4, spectrometer_frequency=123.23, names=names)
    assert len(p) == 19 and abs(reference_offset(p)[0]) < 0.002 and p.notes == []


@real
@pytest.mark.parametrize('mended,peaks', [(True, (0.89, 2.03)), (False, (0.85, 1.99))])
def test_paper_macromolecules(mended, peaks):
    mm = read_paper_mm(DATA/'seed'/'mm.mat', mended)
    s, ppm = mm.spectrum()[0].real, mm.acquisition.ppm_axis()
    for peak in peaks:
        near = (ppm - peak).abs() < 0.15
        assert abs(float(ppm[near][s[near].argmax()]) - peak) < 0.015
    assert abs(float(s[:50].mean())) < 0.005*float(s.max())


@real
@pytest.mark.skipif(dio._spec2nii() is None, reason='spec2nii is not installed')
@pytest.mark.parametrize('kind', ['act', 'ref'])
def test_philips_pair_through_spec2nii(kind):
    x = read_spectra(DATA/'invivo'/f'sub-01_PRESS_35_{kind}.sdat')
    y = read_spectra(DATA/'invivo'/f'sub-01_press_{kind}.nii.gz')
    assert torch.equal(x.fids, y.fids) and np.array_equal(x.affine, y.affine) and x.acquisition == y.acquisition


@pytest.mark.parametrize('field', ['dwell_time', 'spectrometer_frequency', 'centre_ppm', 'echo_time'])
def test_numbers_too_large_are_refused(field):
    good = {'dwell_time': 5e-4, 'spectrometer_frequency': 123.2, 'points': 512}
    for huge in (10**400, 10**5000):  # Python prints the second to nobody
        with pytest.raises(InputError, match='too large'): Acquisition(**good | {field: huge})


@pytest.mark.parametrize('points', ['many', None, math.inf, math.nan, 1])
def test_points_that_are_none(points):
    with pytest.raises(InputError, match='points'): Acquisition(5e-4, 123.2, points)


def test_a_header_with_a_number_too_large(tmp_path):
    "A basis set whose centre no float holds"
    fid = [float(v) for v in np.exp(-np.arange(64)/20)]
    card = {'basis_re': fid, 'basis_im': [0.]*64, 'basis_dwell': 5e-4, 'basis_centre': 123.2, 'basis_name': 'NAA'}
    about = {'basis': card | {'basis_width': 2.}}
    (tmp_path/'good').mkdir()
    (tmp_path/'bad').mkdir()
    (tmp_path/'good/NAA.json').write_text(json.dumps(about))
    (tmp_path/'bad/NAA.json').write_text(json.dumps({'basis': about['basis'] | {'basis_centre': 10**400}}))
    assert read_basis(tmp_path/'good').acquisition.spectrometer_frequency == 123.2
    with pytest.raises(InputError): read_basis(tmp_path/'bad')

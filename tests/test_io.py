"Files: round trips, odd files, bad files"
import json
import math
import os
import shutil
import subprocess
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

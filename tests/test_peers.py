"""Files for LCModel and FSL-MRS, and their tables as they write them. The tools themselves are not needed: small programs stand in for them.

The layouts are those of LCModel 6.3 (concentration table: amount 8 wide, %SD 4, ratio 8, a blank or + or -, the name; .csv: `Row, Col`, then three columns an amount, names cut after
13 letters) and of FSL-MRS 2 (concentrations.csv with two head lines, summary.csv with `Raw conc` and `Raw CRLB`).
"""
import json
import os
import re
import stat
import sys
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from deepmrs.basis import Basis
from deepmrs.core import InputError, Spectra
from deepmrs.io import read_basis, read_spectra
from deepmrs.peers import (find_fsl_mrs, find_lcmodel, fsl_mrs_command, lcmodel_control, lcmodel_quality, plain_name, plot_side_by_side, read_fsl_mrs, read_lcmodel, run_fsl_mrs,
                           run_lcmodel, side_by_side, write_for_fsl_mrs, write_for_lcmodel)
from deepmrs.quantify import quantify
from deepmrs.spins import simulate_basis

matplotlib.use('Agg')
DATA = Path(__file__).parents[2]/'shared/data'
NAMES = ['NAA', 'NAAG', 'Cr', 'PCr', 'GPC', 'PCho', 'Ins', 'sIns', 'Glu', 'Gln']
AMOUNTS = torch.tensor([[12., 1., 5., 4., 1., .5, 6., .3, 9., 2.], [9., 2., 4., 4., .8, .9, 4., .2, 8., 3.]])


@pytest.fixture(scope='module')
def basis():
    return simulate_basis(NAMES, te1=.011, te2=.019, spectrometer_frequency=123.2, points=1024, dwell_time=5e-4, linewidth=3.)


@pytest.fixture(scope='module')
def spectra(basis):
    fids = (AMOUNTS.to(basis.fids.dtype) @ basis.fids)*torch.exp(-8*basis.acquisition.time_axis())
    noise = .01*float(fids.abs().max())*torch.randn(*fids.shape, dtype=fids.dtype, generator=torch.Generator().manual_seed(0))
    return Spectra(fids + noise, acquisition=basis.acquisition, names=['voxel 1', 'voxel/2'])


def conc_table(rows, reference='Cr+PCr', announced=None):
    "A concentration table in LCModel's columns; rows are (amount, %SD, ratio, flag, name)"
    lines = [f' LCModel (Version 6.3-1N)\n a title\n\n$$CONC{(announced or len(rows)) + 1:3d} lines in following concentration table = NCONC+1', f'    Conc.  %SD /{reference:6.6s}  Metabolite' + ' '*40]
    lines += [f' {a:>8s}{p:>4s}%{r:>8s}{flag}{name:<52s}' for a, p, r, flag, name in rows]
    return '\n'.join(lines) + '\n\n$$MISC  6 lines in following misc. output table\n  FWHM = 0.043 ppm    S/N =  13      \n  Data shift =-0.023 ppm             \n  Ph: -21 deg      12.2 deg/ppm      \n'


def program(path, body):
    "An executable Python program"
    path.write_text(f'#!{sys.executable}\n{textwrap.dedent(body)}')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# ---- LCModel's tables

ODD = [('2.88E-02', '88', '0.115', ' ', '2HG'), ('0.000', '999', '0.000', ' ', 'Cr'), ('0.149', '22', '0.592', '+', 'Lac'), ('3.45E-03', '88', '1.4E-02', '-', 'Scyllo'),
       ('6.78E-02', '16', '0.271', ' ', '-CrCH2'), ('6.78E-02', '16', '0.271', '-', '-CrCH2'), ('1.23E+04', '2', '4.9E+04', '+', 'NAA+NAAG'), ('0.251', '3', '1.000', ' ', 'Cr+PCr'),
       ('********', '***', '********', ' ', 'Glc'), ('45.000', '0', '999.999', ' ', 'Ins'), ('123.456', '7', '999.999', ' ', 'MM14+Lip13a+Lip13b+MM12'), ('0.200', '22', '12.345', '+', '-CrCH2')]


@pytest.mark.parametrize('amount, percent, ratio, flag, name', ODD)
def test_row(tmp_path, amount, percent, ratio, flag, name):
    "One row, with every neighbour fused that the columns let fuse"
    (tmp_path/'a.table').write_text(conc_table([(amount, percent, ratio, flag, name)]))
    row, = read_lcmodel(tmp_path).itertuples()
    stars = amount.startswith('*')
    assert row.spectrum == 'a' and row.metabolite == name
    np.testing.assert_equal(row.amplitude, np.nan if stars else float(amount))
    assert row.status == {' ': 'ok', '+': 'ratio above its prior', '-': 'ratio below its prior'}[flag]
    if stars or percent in ('999', '0'): assert np.isnan(row.sd)
    else: assert row.crlb_percent == int(percent) and row.sd == pytest.approx(float(amount)*int(percent)/100) and row.ratio_tCr == float(ratio)


def test_whole_table(tmp_path):
    (tmp_path/'a.table').write_text(conc_table(ODD))
    frame = read_lcmodel(tmp_path/'a.table')
    assert list(frame.metabolite) == [r[4] for r in ODD]
    quality = lcmodel_quality(tmp_path)
    assert quality.values.tolist() == [['a', .043, 13, -.023, -21]]


def test_older_table_without_a_column_for_flags(tmp_path):
    "A wide ratio ran into the name"
    (tmp_path/'a.coord').write_text('   3 lines in following concentration table = NCONC+1\n    Conc.  %SD /Cr+PCr  Metab.\n   0.659   4%   1.000Cr+PCr\n   1.000  13% 1.5E+00NAA\n')
    assert list(read_lcmodel(tmp_path).metabolite) == ['Cr+PCr', 'NAA'] and read_lcmodel(tmp_path).ratio_tCr[1] == 1.5


def test_ratio_to_something_else(tmp_path):
    "A ratio to another reference is not taken for one to creatine"
    (tmp_path/'a.table').write_text(conc_table([('2.000', '3', '1.000', ' ', 'H2O'), ('1.000', '3', '0.500', ' ', 'NAA'), ('0.500', '3', '0.250', ' ', 'Cr')], 'H2O'))
    assert read_lcmodel(tmp_path).ratio_tCr.tolist() == [4., 2., 1.]


def test_csv(tmp_path):
    "A grid of voxels; names of sums are cut after 13 letters"
    (tmp_path/'grid.csv').write_text('Row, Col, NAA, NAA %SD, NAA/Cr+PCr, -CrCH2, -CrCH2 %SD, -CrCH2/Cr+PCr, Cr+PCr, Cr+PCr %SD, Cr+PCr/Cr+PCr, MM14+Lip13a+L, MM14+Lip13a+L %SD, MM14+Lip13a+L/Cr+PCr\n'
                                     '  1,   1, 7.97E-02,   11,    0.318,    0.000,  999,    0.000,    0.251,    3,    1.000,    0.357,   17,    1.426\n'
                                     '  1,   2,    1.250,    5,    1.250, 6.78E-02,   16,  6.8E-02,    1.000,    4,    1.000,    0.357,   17,    0.357\n')
    frame = read_lcmodel(tmp_path)
    assert list(frame.spectrum.unique()) == ['grid 1-1', 'grid 1-2'] and list(frame.metabolite[:4]) == ['NAA', '-CrCH2', 'Cr+PCr', 'MM14+Lip13a+L']
    assert frame.amplitude[0] == .0797 and frame.crlb_percent[0] == 11 and frame.ratio_tCr[4] == 1.25 and np.isnan(frame.sd[1])


def test_table_comes_before_coord_before_csv(tmp_path):
    for suffix, amount in (('.csv', None), ('.coord', '2.000'), ('.table', '1.000')):
        text = conc_table([(amount, '3', '1.000', ' ', 'Cr')]) if amount else 'Row, Col, Cr, Cr %SD, Cr/Cr\n 1, 1, 3.000, 3, 1.000\n'
        (tmp_path/f'a{suffix}').write_text(text)
        assert read_lcmodel(tmp_path).amplitude.tolist() == [float(amount or 3)]


@pytest.mark.parametrize('text, what', [
    (conc_table([('1.000', '3', '1.000', ' ', 'Cr')], announced=4), 'cut short'),
    (conc_table([('1.000', '3', '1.000', ' ', 'Cr')]).replace('3%', '3 '), 'no row'),
    ('Row, Col, Cr, Cr %SD, Cr/Cr\n 1, 1, 3.000, 3\n', 'cut short')])
def test_damaged(tmp_path, text, what):
    path = tmp_path/('a.csv' if text.startswith('Row') else 'a.table')
    path.write_text(text)
    with pytest.raises(InputError, match=what): read_lcmodel(path)


def test_nothing_there(tmp_path):
    (tmp_path/'other.csv').write_text('a,b\n1,2\n')
    (tmp_path/'died.coord').write_text(' FATAL ERROR MESSAGE\n')
    with pytest.raises(InputError, match='no result of LCModel'): read_lcmodel(tmp_path)
    with pytest.raises(InputError, match='no result of FSL-MRS'): read_fsl_mrs(tmp_path)
    for read in (read_lcmodel, read_fsl_mrs):
        with pytest.raises(InputError, match='does not exist'): read(tmp_path/'absent')


# ---- files for LCModel

def numbers(path):
    "Complex numbers of a .RAW, read by hand"
    text = re.split(r'\$END', path.read_text())[-1]
    return np.array([float(x) for x in text.split()]).reshape(-1, 2) @ [1, 1j]


def basis_numbers(path):
    "Name → spectrum of a .BASIS, read by hand"
    return {re.search(r"METABO = '(.*?)'", block)[1]: np.array([float(x) for x in block.split('$END')[1].split('$NMUSED')[0].split()]).reshape(-1, 2) @ [1, 1j]
            for block in path.read_text().split('$BASIS\n')[1:]}


def test_data_are_the_sum_of_the_basis_set(tmp_path, basis):
    "In LCModel's own terms: the unitary transform of the zero-filled .RAW is the amounts times the .BASIS; NAA at a positive frequency"
    fids = AMOUNTS.to(basis.fids.dtype) @ basis.fids
    write_for_lcmodel(Spectra(fids, acquisition=basis.acquisition, names=['a', 'b']), basis, tmp_path/'x')
    sets, y = basis_numbers(tmp_path/'x'/'basis.BASIS'), numbers(tmp_path/'x'/'b.RAW')
    assert list(sets) == ['NAA', 'NAAG', 'Cr', 'PCr', 'GPC', 'PCh', 'Ins', 'Scyllo', 'Glu', 'Gln']
    s = np.fft.fft(y, 2*len(y))/np.sqrt(2*len(y))
    want = AMOUNTS[1].double().numpy() @ np.stack(list(sets.values()))
    assert np.abs(s - want).max() < 1e-5*np.abs(s).max()
    f = np.fft.fftfreq(len(s), 5e-4)[np.abs(sets['NAA']).argmax()]
    assert abs(4.65 - f/123.2 - 2.008) < .01


def test_another_centre_and_dwell_time(tmp_path, basis):
    "Data around 4.7 ppm are moved to LCModel's 4.65, the basis set is resampled to the data"
    acq = basis.acquisition
    moved = Spectra(basis.fids[:1]*torch.exp(-2j*np.pi*acq.to_hz(4.7)*acq.time_axis()).to(basis.fids.dtype), acquisition=acq.replace(centre_ppm=4.7))
    write_for_lcmodel(moved, basis, tmp_path/'a')
    s = np.abs(np.fft.fft(numbers(tmp_path/'a'/'0.RAW')))
    f = np.fft.fftfreq(len(s), 5e-4)[s.argmax()]
    assert abs(4.65 - f/123.2 - 2.008) < .02
    fine = simulate_basis(['NAA', 'Cr'], te1=.011, te2=.019, spectrometer_frequency=123.2, points=4096, dwell_time=2.5e-4, linewidth=3.)
    write_for_lcmodel(Spectra(basis.fids[:1], acquisition=acq), fine, tmp_path/'b')
    assert 'BADELT = 0.0005' in (tmp_path/'b'/'basis.BASIS').read_text() and 'NDATAB = 2048' in (tmp_path/'b'/'basis.BASIS').read_text()


def test_control(basis):
    text = lcmodel_control('x', basis.acquisition, "O'Neil\n$END", (0.5, 4.2), {'nobase': True, 'DKNTMN': .25, 'ppmst': 4.1, 'NOMIT': 1, 'CHOMIT(1)': 'Lip20'})
    lines = text.splitlines()
    assert lines[0] == ' $LCMODL' and lines[-1] == ' $END' and all(l.startswith(' ') for l in lines)
    keys = dict(l.strip().split(' = ', 1) for l in lines[1:-1])
    assert keys['NUNFIL'] == '1024' and float(keys['DELTAT']) == 5e-4 and float(keys['HZPPPM']) == 123.2 and keys['NOBASE'] == 'T' and keys['CHOMIT(1)'] == "'Lip20'"
    assert keys['PPMST'] == '4.1' and keys['PPMEND'] == '0.5' and keys['TITLE'] == "'O Neil $END'" and keys['NOMIT'] == '1' and text.count('PPMST') == 1
    assert keys['LTABLE'] == '7' and keys['LCOORD'] == '9' and keys['LCSV'] == '11'


def test_macromolecules_of_its_own(tmp_path, basis, spectra):
    "LCModel's simulated macromolecules go when the basis set has some, and an option overrules"
    mm = Basis(torch.cat([basis.fids, basis.fids[:1]*torch.exp(-60*basis.acquisition.time_axis())]), [*NAMES, 'MM'], acquisition=basis.acquisition)
    write_for_lcmodel(spectra, mm, tmp_path/'a')
    assert 'NSIMUL = 0' in (tmp_path/'a'/'voxel_1.control').read_text()
    write_for_lcmodel(spectra, mm, tmp_path/'b', options={'NSIMUL': 13})
    assert 'NSIMUL = 13' in (tmp_path/'b'/'voxel_1.control').read_text()


def test_refused(tmp_path, basis, spectra):
    long = Basis(basis.fids[:2], ['Compound1', 'Compound2'], acquisition=basis.acquisition)
    with pytest.raises(InputError, match='six letters'): write_for_lcmodel(spectra, long, tmp_path/'a')
    phosphorus = basis.acquisition.replace(nucleus='31P')
    for write in (write_for_lcmodel, write_for_fsl_mrs):
        with pytest.raises(InputError, match='1H'): write(Spectra(spectra.fids, acquisition=phosphorus), basis, tmp_path/'b')
    with pytest.raises(InputError, match='MHz'): write_for_lcmodel(spectra, simulate_basis(['NAA', 'Cr'], te1=.011, te2=.019, spectrometer_frequency=297.2), tmp_path/'c')


def test_names_of_files(tmp_path, basis, spectra):
    "Two spectra whose names make one file name keep both"
    same = Spectra(spectra.fids, acquisition=spectra.acquisition, names=['a/b', 'a b'])
    write_for_lcmodel(same, basis, tmp_path)
    stems = json.loads((tmp_path/'peers.json').read_text())['spectra']
    assert sorted(stems.values()) == ['a b', 'a/b'] and len(set(stems)) == 2 and all((tmp_path/f'{s}.RAW').exists() for s in stems)


# ---- a stand-in for LCModel: linear least squares from its input files to its output file

STAND_IN = '''
    import re, sys
    import numpy as np
    keys = dict(re.findall(r"(\\w+) = '?([^'\\n]*)'?", sys.stdin.read()))
    two = lambda text: np.array([float(x) for x in text.split()]).reshape(-1, 2) @ [1, 1j]
    y = two(open(keys['FILRAW']).read().split('$END')[-1])
    blocks = open(keys['FILBAS']).read().split('$BASIS\\n')[1:]
    names = [re.search("METABO = '(.*?)'", b)[1] for b in blocks]
    n = int(keys['NUNFIL'])
    B = np.stack([np.fft.ifft(two(b.split('$END')[1].split('$NMUSED')[0]))[:n] for b in blocks])*np.sqrt(2*n)*np.exp(-8*float(keys['DELTAT'])*np.arange(n))
    A = np.concatenate([B.real, B.imag], 1).T
    v = np.concatenate([y.real, y.imag])
    a = np.linalg.lstsq(A, v, rcond=None)[0]
    sd = np.sqrt(np.diag(np.linalg.inv(A.T @ A)))*(v - A @ a).std()
    ref = a[names.index('Cr')] + a[names.index('PCr')]
    rows = [(x, min(999, round(100*s/x)), x/ref, name) for x, s, name in zip(a, sd, names)] + [(ref, 1, 1., 'Cr+PCr')]
    with open(keys['FILTAB'], 'w') as f:
        print(f'$$CONC{len(rows) + 1:3d} lines in following concentration table = NCONC+1', '    Conc.  %SD /Cr+PCr  Metabolite', sep='\\n', file=f)
        for x, p, r, name in rows: print(f' {x:8.3f}{p:4d}%{r:8.3f} {name}', file=f)
'''


def test_there_and_back(tmp_path, basis, spectra):
    "Write, run, read: the amounts under the user's names"
    write_for_lcmodel(spectra, basis, tmp_path/'run')
    seconds = run_lcmodel(tmp_path/'run', program(tmp_path/'lcmodel', STAND_IN))
    assert list(seconds) == ['voxel 1', 'voxel/2'] and all(s > 0 for s in seconds.values())
    frame = read_lcmodel(tmp_path/'run')
    got = frame.pivot(index='spectrum', columns='metabolite', values='amplitude')
    assert set(NAMES) < set(got.columns) and list(got.index) == ['voxel 1', 'voxel/2']
    want, sd = AMOUNTS.numpy(), frame.pivot(index='spectrum', columns='metabolite', values='sd')[NAMES].to_numpy()
    assert (np.abs(got[NAMES].to_numpy() - want) < 5*np.nan_to_num(sd, nan=.05) + .01).all() and np.abs(got.NAA - want[:, 0]).max() < .3
    (tmp_path/'run'/'voxel_2.table').unlink()
    frame = read_lcmodel(tmp_path/'run')
    assert frame[frame.spectrum == 'voxel/2'].status.tolist() == ['no result']


def test_side_by_side_with_a_fit(tmp_path, basis, spectra):
    write_for_lcmodel(spectra, basis, tmp_path/'run')
    run_lcmodel(tmp_path/'run', program(tmp_path/'lcmodel', STAND_IN))
    result = quantify(spectra, basis, preset='none', baseline='off', macromolecules='none')
    truth = pd.DataFrame([{'spectrum': s, 'metabolite': n, 'truth': float(a)} for s, row in zip(spectra.names, AMOUNTS) for n, a in zip(NAMES, row)])
    for unit in ('ratio_tCr', 'amplitude'):
        table = side_by_side({'fit': result, 'other': read_lcmodel(tmp_path/'run')}, truth, unit)
        wide = table.pivot(index=['spectrum', 'metabolite'], columns='tool', values='value')
        assert wide.notna().all().all() and {'tNAA', 'tCr', 'tCho', 'Glx'} < set(table.metabolite) and table.truth.notna().all()
        big = wide.loc[pd.IndexSlice[:, ['tNAA', 'tCr', 'Ins', 'Glx']], :]
        assert (big.fit/big.other - 1).abs().max() < .05
        known = table.dropna(subset='error_in_sd')
        assert known[known.tool == 'fit'].error_in_sd.abs().max() < 6
    own = result.to_frame().set_index(['spectrum', 'metabolite'])
    ratios = side_by_side({'fit': result}).set_index(['spectrum', 'metabolite'])
    assert ratios.sd['voxel 1', 'tNAA'] == own.ratio_tCr_sd['voxel 1', 'tNAA']  # from the covariance
    ax = plot_side_by_side(table, 'voxel/2', ['tNAA', 'tCr'])
    assert [t.get_text() for t in ax.get_xticklabels()] == ['tNAA', 'tCr'] and len(ax.get_legend().get_texts()) == 3
    with pytest.raises(InputError, match='no spectrum'): plot_side_by_side(table, 'voxel 9')


def test_totals_and_what_is_missing():
    a = pd.DataFrame({'spectrum': 'x', 'metabolite': ['Cr', 'PCr', 'NAA', 'GPC', 'PCh', 'Tau'], 'amplitude': [4., 4., 10., 1., .6, 2.], 'sd': [.4, .4, .5, .1, .1, np.nan]})
    b = pd.DataFrame({'spectrum': 'x', 'metabolite': ['Cr+PCr', 'NAA+NAAG', 'GPC+PCh', 'NAA'], 'amplitude': [8., 11., 1.6, 10.], 'sd': [.2, .3, .1, .3]})
    table = side_by_side({'a': a, 'b': b})
    value, sd = (table.set_index(['tool', 'metabolite'])[c] for c in ('value', 'sd'))
    assert value['a', 'tCr'] == 1 and np.isnan(sd['a', 'tCr']) and value['a', 'tNAA'] == 1.25 and sd['a', 'tNAA'] == pytest.approx(.0625)  # one part: its own error
    assert value['b', 'tNAA'] == 1.375 and value['a', 'tCho'] == pytest.approx(.2) and ('b', 'Tau') not in value.index and np.isnan(sd['a', 'Tau'])
    assert side_by_side({'a': a, 'b': b}, unit='amplitude').set_index(['tool', 'metabolite']).value['a', 'tCho'] == 1.6
    none = side_by_side({'a': a[a.metabolite == 'NAA']})
    assert none.value.isna().all()  # no creatine, no ratio


def test_side_by_side_refuses():
    a = pd.DataFrame({'spectrum': ['x'], 'metabolite': ['NAA'], 'amplitude': [1.]})
    with pytest.raises(InputError, match='no spectrum in common'): side_by_side({'a': a, 'b': a.assign(spectrum='y')})
    with pytest.raises(InputError, match='amplitude'): side_by_side({'a': a.drop(columns='amplitude')})
    with pytest.raises(InputError, match='unit'): side_by_side({'a': a}, unit='mM')
    with pytest.raises(InputError, match='at least one'): side_by_side({})
    with pytest.raises(InputError, match='no amounts'): plot_side_by_side(side_by_side({'a': a}))


# ---- FSL-MRS

CONCENTRATIONS = ',mean,mean,std,std\n,raw,internal,raw,internal\nCr,1.2,0.48,0.1,0.04\nPCr,1.3,0.52,0.1,0.04\nNAA,3.0,1.2,0.06,0.02\nNAA+NAAG,3.5,1.4,0.05,0.02\nGln,0.0,0.0,0.1,0.04\n'


@pytest.mark.parametrize('name, text', [
    ('concentrations.csv', CONCENTRATIONS),
    ('concentrations.csv', CONCENTRATIONS.replace('internal\nCr', 'internal\nMetabs,,,,\nCr')),  # a name of the index on a line of its own
    ('summary.csv', 'Metab,Raw conc,Raw CRLB,%CRLB,SNR,FWHM\nCr,1.2,0.1,8.3,20,5\nPCr,1.3,0.1,7.7,20,5\nNAA,3.0,0.06,2,30,5\nNAA+NAAG,3.5,0.05,1.4,,\nGln,0.0,0.1,999,1,5\n')])
def test_fsl_mrs_table(tmp_path, name, text):
    (tmp_path/name).write_text(text)
    frame = read_fsl_mrs(tmp_path).dropna(subset='amplitude').set_index('metabolite')
    assert frame.amplitude.to_dict() == {'Cr': 1.2, 'PCr': 1.3, 'NAA': 3., 'NAA+NAAG': 3.5, 'Gln': 0.} and frame.sd['NAA'] == .06
    assert frame.ratio_tCr['NAA'] == pytest.approx(1.2) and frame.crlb_percent['NAA'] == pytest.approx(2) and np.isinf(frame.crlb_percent['Gln'])


def test_fsl_mrs_ratios_only(tmp_path):
    (tmp_path/'summary.csv').write_text('Metab,/Cr+PCr,/Cr+PCr CRLB\nCr,0.48,0.04\nPCr,0.52,0.04\nNAA,1.2,0.02\n')
    assert read_fsl_mrs(tmp_path).ratio_tCr[2] == pytest.approx(1.2)
    (tmp_path/'summary.csv').write_text('Metab,mM\nCr,0.48\n')
    with pytest.raises(InputError, match='no raw concentrations'): read_fsl_mrs(tmp_path)
    (tmp_path/'summary.csv').write_text('')
    with pytest.raises(InputError, match='cannot be read'): read_fsl_mrs(tmp_path)


@pytest.mark.parametrize('text', ['Metab,Raw conc,Raw CRLB\n', 'Metab,Raw conc,Raw CRLB\n,1.0,0.1\n'])
def test_fsl_mrs_table_without_amounts(tmp_path, text):
    (tmp_path/'summary.csv').write_text(text)
    with pytest.raises(InputError, match='holds no amounts'): read_fsl_mrs(tmp_path)


def test_fsl_mrs_row_without_a_name_is_left_out(tmp_path):
    (tmp_path/'summary.csv').write_text('Metab,Raw conc,Raw CRLB\nNAA,2.0,0.1\n,1.0,0.1\nCr,1.0,0.1\n')
    frame = read_fsl_mrs(tmp_path)
    assert list(frame.metabolite) == ['NAA', 'Cr'] and frame.amplitude.tolist() == [2., 1.]


def test_fsl_mrs_there_and_back(tmp_path, basis, spectra):
    "The command gets the files it names; options of the writing are used in the running"
    write_for_fsl_mrs(spectra, basis, tmp_path/'run', options=('--baseline', 'spline, moderate'))
    assert "--baseline 'spline, moderate'" in (tmp_path/'run'/'run.sh').read_text()
    stand_in = program(tmp_path/'fsl_mrs', f'''
        import pathlib, sys
        a = sys.argv
        get = lambda k: pathlib.Path(a[a.index(k) + 1])
        assert get('--data').exists() and len(list(get('--basis').glob('*.json'))) == {len(NAMES)} and get('--baseline').name == 'spline, moderate'
        get('--output').mkdir(parents=True)
        (get('--output')/'concentrations.csv').write_text({CONCENTRATIONS!r})
        ''')
    seconds = run_fsl_mrs(tmp_path/'run', stand_in)
    assert list(seconds) == spectra.names
    assert list(read_fsl_mrs(tmp_path/'run').spectrum.unique()) == spectra.names
    back = read_spectra(tmp_path/'run'/'data'/'voxel_1.nii.gz')
    assert torch.allclose(back.fids[0], spectra.fids[0], atol=1e-5*float(spectra.fids.abs().max()))
    assert torch.allclose(read_basis(tmp_path/'run'/'basis').select(NAMES).fids, basis.fids, atol=1e-5*float(basis.fids.abs().max()))


def test_fsl_mrs_totals():
    command = fsl_mrs_command('x', ['NAA', 'NAAG', 'Cr', 'GPC', 'PCh'])
    assert [command[i + 1:i + 3] for i, c in enumerate(command) if c == '--combine'] == [['NAA', 'NAAG'], ['GPC', 'PCh']]


# ---- tools that are absent, or hang

def test_absent(tmp_path, monkeypatch, basis, spectra):
    for k in ('LCMODEL_EXEC', 'FSLDIR', 'LCMODEL_CACHE_DIR'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.setenv('PATH', str(tmp_path/'bin'))
    assert find_lcmodel() is None and find_fsl_mrs() is None
    with pytest.raises(InputError, match='LCModel is not installed'): run_lcmodel(tmp_path)
    with pytest.raises(InputError, match='FSL-MRS is not installed'): run_fsl_mrs(tmp_path)
    write_for_lcmodel(spectra, basis, tmp_path/'run')
    with pytest.raises(InputError, match='cannot be run'): run_lcmodel(tmp_path/'run', tmp_path/'nothing')


def test_found(tmp_path, monkeypatch):
    "By variable, on the path, where the installer and where lcmodel-wrapper put it"
    for k in ('LCMODEL_EXEC', 'FSLDIR', 'LCMODEL_CACHE_DIR'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path)); monkeypatch.setenv('PATH', str(tmp_path/'bin'))
    for place in ('.cache/lcmodel_wrapper/linux-x86_64/lcmodel', '.lcmodel/bin/lcmodel', 'bin/lcmodel', 'mine'):
        path = tmp_path/place
        path.parent.mkdir(parents=True, exist_ok=True)
        program(path, '')
        if place == 'mine': monkeypatch.setenv('LCMODEL_EXEC', str(path))
        assert find_lcmodel() == str(path)
    monkeypatch.setenv('FSLDIR', str(tmp_path))
    assert find_fsl_mrs() is None
    assert find_fsl_mrs() or str(program(tmp_path/'bin'/'fsl_mrs', '')) == find_fsl_mrs()


def test_hangs(tmp_path, basis, spectra):
    write_for_lcmodel(spectra[:1], basis, tmp_path/'run')
    slow = program(tmp_path/'slow', 'import time; time.sleep(30)')
    assert np.isnan(run_lcmodel(tmp_path/'run', slow, timeout=.5)['voxel 1'])


def test_plain_names():
    assert [plain_name(n) for n in ('GPC+PCh', 'PCr+Cr', 'mI', 'Scyllo', 'MM20+Lip20', 'Glu+Gln')] == ['tCho', 'tCr', 'Ins', 'sIns', 'MM20+Lip20', 'Glx']


@pytest.mark.skipif(not (DATA/'invivo').exists(), reason='the real voxel is not here')
def test_real_voxel_is_written_as_it_was(tmp_path):
    voxel, press = read_spectra(DATA/'invivo/sub-01_press_act.nii.gz'), read_basis(DATA/'invivo/3T_PRESS_Philips_35ms_noMM.BASIS')
    write_for_lcmodel(voxel, press, tmp_path/'x')
    y = numbers(next((tmp_path/'x').glob('*.RAW')))
    assert np.allclose(y, voxel.fids[0].conj().resolve_conj().numpy(), atol=1e-6*float(voxel.fids.abs().max()))
    s = np.abs(np.fft.fft(y))
    ppm = 4.65 - np.fft.fftfreq(len(y), voxel.acquisition.dwell_time)/voxel.acquisition.spectrometer_frequency
    assert s[(ppm > 1.9) & (ppm < 2.1)].max() > 3*s[(ppm > 7.2) & (ppm < 7.4)].max()

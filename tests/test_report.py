"The report: self-contained, escaped, honest about what is missing, light enough."
import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from deepmrs.core import InputError, Spectra
from deepmrs.model import make_decoder
from deepmrs.quantify import quantify
from deepmrs.report import STATUS, UNKNOWN, grade, pm, report, shared_power, true_rows
from deepmrs.simulate import Simulator, brain_priors
from deepmrs.spins import simulate_basis

REAL = Path(__file__).parents[2]/'shared/data/invivo'
VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class Page(HTMLParser):
    "Checks that tags nest, and collects texts, addresses and ids"
    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.ids, self.links, self.loads, self.texts = [], [], [], [], [], []
        self.feed(text)
        assert not self.open, f'left open: {self.open}'

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag not in VOID: self.open.append(tag)
        if 'id' in a: self.ids.append(a['id'])
        if tag == 'img': self.images.append(a)
        if tag == 'a': self.links.append(a['href'])
        self.loads += [a[k] for k in ('src',) if k in a] + ([a['href']] if tag == 'link' else [])

    def handle_endtag(self, tag): assert self.open.pop() == tag, tag
    def handle_data(self, data): self.texts.append(data)


def read(path):
    text = path.read_text(encoding='utf-8')
    page = Page(text)
    assert all(u.startswith('data:image/') for u in page.loads) and not re.search(r'@import|url\(', text)
    assert len(set(page.ids)) == len(page.ids) and all(link[1:] in page.ids for link in page.links)
    for image in page.images:
        assert image['alt']
        kind, data = image['src'].split(';base64,')
        if 'svg' in kind: ET.fromstring(base64.b64decode(data))
    return page, text


@pytest.fixture(scope='module')
def made():
    basis = simulate_basis(te1=.011, te2=.019)
    decoder, _, _ = make_decoder(basis)
    spectra, truth = Simulator(decoder, brain_priors(decoder), noise_sd=6.).spectra(6, seed=5)
    return basis, spectra, truth


@pytest.fixture(scope='module')
def single(made): return quantify(made[1][0], made[0])


def test_single(single, made, tmp_path):
    path = report(single, tmp_path/'new', truth=made[2][:1], title='A title')
    assert path == tmp_path/'new'/'report.html' and [f.name for f in path.parent.iterdir()] == ['report.html']
    page, text = read(path)
    words = ' '.join(page.texts)
    frame = single.to_frame().set_index('metabolite')
    for name in ('tNAA', 'Ins', 'MM09'):
        assert name in words and pm(frame.amplitude[name], frame.sd[name]) in words
    assert pm(frame.ratio_tCr['tNAA'], frame.ratio_tCr_sd['tNAA']) in words
    assert all(n in words for n in single.notes) and UNKNOWN in words and 'institutional units' in words and 'brain-3t' in words
    assert 'A title' in words and len(text) < 1e6 and len(page.images) == 3  # fit, truth, correlations


def test_several_and_hostile_names(made, tmp_path):
    basis, spectra, truth = made
    fids = spectra.fids.clone()
    fids[3] = 0
    names = ['<img src=x onerror=alert(1)>', '</script><script>alert(2)</script>', '"&', 'd', 'e', 'f']
    result = quantify(Spectra(fids, acquisition=spectra.acquisition, names=names, source='<i>file'), basis)
    page, text = read(report(result, tmp_path, truth=truth))
    assert '<img src=x' not in text and '</script><script>' not in text and '<i>file' not in text
    assert STATUS['empty'] in ' '.join(page.texts) and '>nan' not in text and '"nan' not in text and len(text) < 3e6


def test_maps(made, tmp_path):
    basis, spectra, _ = made
    fids = spectra.fids.clone()
    fids[0] = 0
    result = quantify(Spectra(fids.reshape(3, 1, 2, -1), acquisition=spectra.acquisition), basis)
    page, _ = read(report(result, tmp_path))
    assert any('Maps of tNAA, tCr, tCho, Glx, SNR' in i['alt'] for i in page.images) and '1 of 6 voxels hold only zeros' in ' '.join(page.texts)


def test_bare_model_and_one_metabolite(made, tmp_path):
    "No baseline, no window, no tCr, no correlations with others"
    basis, spectra, _ = made
    result = quantify(spectra[0], basis.replace(basis.fids[[basis.index('NAA')]], names=['NAA']), preset='none')
    page, _ = read(report(result, tmp_path))
    words = ' '.join(page.texts)
    assert 'time domain, all points' in words and '/ tCr' not in words


def test_units_of_the_basis_share_a_power(made, tmp_path):
    basis, spectra, _ = made
    result = quantify(spectra[0], basis.replace(basis.fids*1e-7))
    assert shared_power(result.to_frame().amplitude) == 6
    assert 'amount (×10⁶)' in report(result, tmp_path).read_text(encoding='utf-8')


def test_truth_forms(single):
    K, M = single.decoder.linear, len(single.names)
    a = torch.arange(K, dtype=torch.float64) + 1
    names = single.amounts()[0]
    whole = true_rows(single, a)[0]
    assert whole[:K].equal(a) and whole[names.index('tCr')] == a[names.index('Cr')] + a[names.index('PCr')]
    assert true_rows(single, a[None, :M])[0, M:K].isnan().all() and true_rows(single, a[None, :M])[0, -1] == whole[-1]
    given = true_rows(single, {'tNAA': 12., 'Ins': torch.tensor([5.])})[0]
    assert given[names.index('tNAA')] == 12 and given[names.index('Ins')] == 5 and given[names.index('NAA')].isnan()
    for bad in ({'x': 1.}, torch.zeros(3, K), torch.zeros(M - 1)):
        with pytest.raises(InputError): true_rows(single, bad)


def test_unwritable(single, tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(InputError): report(single, tmp_path/'file')


def test_reading_text():
    assert pm(12.345, .12) in ('12.35 ± 0.12', '12.34 ± 0.12')
    assert pm(float('nan'), 1.) == '—' and pm(1234.5, 56.) == '1234 ± 56'
    assert [grade(v) for v in (.05, .12, .2, float('nan'))] == ['good', 'doubtful', 'bad', '']


@pytest.mark.skipif(not REAL.exists(), reason='needs ../shared/data, which is not part of the project')
def test_real_voxel(tmp_path):
    result = quantify(REAL/'sub-01_press_act.nii.gz', REAL/'3T_PRESS_Philips_35ms_noMM.BASIS', water=REAL/'sub-01_press_ref.nii.gz')
    page, text = read(report(result, tmp_path))
    assert 'TE 35 ms' in text and len(text) < 1e6 and 'good' in ' '.join(page.texts)

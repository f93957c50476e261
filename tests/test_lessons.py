"What the lessons keep of their runs: how long the cells take, and their pictures"
import json, re, runpy
from pathlib import Path
import pytest

top = Path(__file__).parent.parent
in_words = runpy.run_path(str(top/'.ci/execute'))['in_words']

@pytest.mark.parametrize('seconds, words', [(1,'5 s'), (12.4,'10 s'), (13,'15 s'), (57,'55 s'), (58,'1 minute'),
    (74,'1 minute'), (76,'1.5 minutes'), (130,'2 minutes')])
def test_in_words(seconds, words): assert in_words(seconds)==words

@pytest.mark.parametrize('name', [o.stem for o in sorted((top/'nbs').glob('[01]*.ipynb'))])
def test_time(name):
    rec = json.loads((top/f'results/lessons/{name}.json').read_text(encoding='utf-8'))
    cells = json.loads((top/f'nbs/{name}.ipynb').read_text(encoding='utf-8'))['cells']
    start = ' '.join(' '.join(''.join(c['source']) for c in cells[:4] if c['cell_type']=='markdown').split())
    assert f"Its cells take about {in_words(rec['seconds'])} on two CPU cores." in start and rec['hardware']['cores']==2

draws = re.compile(r'^(_,axs? = |fig,axs? = |ax = |plot_\w+\(|show_images?\(|dls\.show_batch|draw_flow\()', re.M)

@pytest.mark.parametrize('file', sorted((top/'nbs').glob('*.ipynb')), ids=lambda f: f.stem)
def test_cells_that_draw_keep_their_pictures(file):
    "An edit by a tool may lose them"
    for c in json.loads(file.read_text(encoding='utf-8'))['cells']:
        if c['cell_type']=='code' and draws.search(source:=''.join(c['source'])):
            assert any('image/png' in o.get('data', {}) for o in c['outputs']), source

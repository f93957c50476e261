"What the lessons keep of their runs: how long the cells take, and their pictures"
import json, re, statistics
from pathlib import Path
import pytest

top = Path(__file__).parent.parent
books = sorted(o for o in (top/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
def in_words(seconds):
    "What a lesson says: to 5 s under a minute, else to half a minute"
    if seconds<57.5: return f'{max(5, 5*round(seconds/5))} s'
    n = round(seconds/30)/2
    return f"{n:g} minute{'s'*(n>1)}"

@pytest.mark.parametrize('name', [o.stem for o in sorted((top/'nbs').glob('[0-9]*.ipynb'))])
def test_time(name):
    rec = json.loads((top/f'results/lessons/{name}.json').read_text(encoding='utf-8'))
    cells = json.loads((top/f'nbs/{name}.ipynb').read_text(encoding='utf-8'))['cells']
    texts = [''.join(c['source']) for c in cells if c['cell_type']=='markdown']
    start = ' '.join(texts[0].split())
    exercises = sum(int(n) for o in texts for n in re.findall(r'^### Exercise .*\n\n★+ · about (\d+) minutes', o, re.M))
    assert not exercises or f'the exercises about {exercises}.' in start
    assert f"Its cells take about {in_words(rec['seconds'])} on two CPU cores." in start and rec['hardware']['cores']==2

draws = re.compile(r'^(_,axs? = |fig,axs? = |ax = |plot_\w+\(|show_images?\(|dls\.show_batch|draw_flow\()', re.M)

@pytest.mark.parametrize('file', books, ids=lambda f: f.stem)
def test_cells_that_draw_keep_their_pictures(file):
    "An edit by a tool may lose them"
    for c in json.loads(file.read_text(encoding='utf-8'))['cells']:
        if c['cell_type']=='code' and draws.search(source:=''.join(c['source'])):
            assert any('image/png' in o.get('data', {}) for o in c['outputs']), source

@pytest.mark.parametrize('file', [*books, top/'index.ipynb'], ids=lambda f: f.stem)
def test_no_saved_output_is_an_error(file):
    "One of a callback does not end a cell"
    cells = json.loads(file.read_text(encoding='utf-8'))['cells']
    assert not [o['evalue'] for c in cells for o in c.get('outputs', []) if o['output_type']=='error']

@pytest.mark.parametrize('file', [*books, top/'index.ipynb'], ids=lambda f: f.stem)
def test_no_saved_output_is_a_warning(file):
    "It names folders of the machine that it came from"
    cells = json.loads(file.read_text(encoding='utf-8'))['cells']
    assert not [o['text'] for c in cells for o in c.get('outputs', []) if o.get('name')=='stderr']

@pytest.mark.parametrize('file', [*books, top/'index.ipynb'], ids=lambda f: f.stem)
def test_no_text_waits_to_be_written(file):
    for c in json.loads(file.read_text(encoding='utf-8'))['cells']:
        assert not re.search(r'@@|\b(TODO|FIXME|TBD|XXX)\b', ''.join(c['source']))

# --- what a reader sees -----------------------------------------------------------------------------------------------
# A cell that only tests begins with `#| hide`; one whose code is beside the point, such as how a picture is drawn, with
# `#| code-fold: true`. JupyterLab folds what has the metadata {"jupyter": {"source_hidden": true}}, so both have it
def source(c): return ''.join(c['source'])
def folded(c): return bool(re.match(r'#\| (hide|code-fold: true)$', source(c), re.M))

def cells_to_read(cells):
    "The code that a reader looks at: before the exercises, not folded, and not the library's own, which the next cell shows"
    end = next((i for i,c in enumerate(cells) if re.search('^## Exercises', source(c), re.M)), len(cells))
    return [c for c in cells[:end] if c['cell_type']=='code' and not folded(c)
            and not re.match(r'#\| (export|default_exp)', source(c))]

def lines(c): return sum(bool(o.strip()) for o in source(c).splitlines())

# Lessons that show before they assert, with the most lines that half of the cells may have: fewer on the path
shown = {**dict.fromkeys(['00_why','01_data','02_training','03_fcn','04_resblock','05_resnet','06_bottleneck','07_degradation'],
        6), **dict.fromkeys(['08_classics','09_d2l','10_keras','11_preact','12_loading','13_speed',
         '14_ingredients','15_recipe','17_interpret','19_questions','20_next'], 7)}
@pytest.mark.parametrize('name', shown)
def test_ideas_are_seen(name):
    "Of the cells to read most show a value, a table or a picture, and most are short; what is folded is so in JupyterLab too"
    cells = json.loads((top/f'nbs/{name}.ipynb').read_text(encoding='utf-8'))['cells']
    code = cells_to_read(cells)
    silent = [source(c) for c in code if not c['outputs']]
    assert len(silent) <= len(code)/4, '\n---\n'.join(silent)
    long = [source(c) for c in code if lines(c)>16 and not source(c).startswith(('from ','import '))]
    assert statistics.median(map(lines, code)) <= shown[name] and not long, '\n---\n'.join(long)
    for c in cells: assert folded(c)==c['metadata'].get('jupyter', {}).get('source_hidden', False), source(c)

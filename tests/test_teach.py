"What teachers get: misconceptions and goals as the course itself says them, slides, and a table of who has passed what"
import csv, json, os, re, sys
import pytest
from typer.testing import CliRunner
from resnet_course import check, teach
from resnet_course.cli import app
from resnet_course.kit.files import CourseError
from answers import wrongs
import answers_later   # adds to them
from conftest import saved_and_made

@pytest.mark.parametrize('name', check.exercises)
def test_misconceptions(name):
    "Of each check some, each in words"
    found = teach.misconceptions(name)
    predictions = 'first_loss','shuffled','growth','twice_size','first_gradient'   # no answer is wrong
    assert (len(found)>2) is (name not in predictions) and all(o.count(' ')>1 and '{' not in o and o[0] not in ',.:;' for o in found)

def test_misconceptions_are_what_checks_say(capsys):
    for name,words,answers,named in [o for o in wrongs if o[0] in ('silence','one_cycle','deeper')]:
        if re.search('Error|expected|too (small|large)|^twice|net\\.0|has changed', words): continue
        assert getattr(check, name)(*answers, **named) is False
        said = capsys.readouterr().out
        assert any(o in said for o in teach.misconceptions(name)), said

def test_each_exercise_is_on_the_page():
    found = {t.check for o in teach.lesson_names() for t in teach.tasks(o).itertuples()}
    assert found==set(check.exercises)
    page = '\n'.join(map(teach.source, json.loads((teach.lessons_home()/'nbs'/'teachers.ipynb').read_text(encoding='utf-8'))['cells']))
    titles = {t.title for o in teach.lesson_names() for t in teach.tasks(o).itertuples()}
    plan, = [o for o in page.split('\n\n') if '**1. Why' in o]
    named = re.findall(r'(?<!\*)\*([^*|\n]+)\*(?!\*)', plan)
    assert len(named)>8 and set(named)<=titles

def test_what_the_page_shows_is_of_the_lessons_as_they_are():
    "Else run `.ci/execute nbs/teachers.ipynb`"
    shown = saved_and_made(teach.lessons_home()/'nbs'/'teachers.ipynb')
    assert len(shown)==2 and all(a==b for a,b in shown)

@pytest.mark.parametrize('name', teach.lesson_names()[:8])
def test_goals(name): assert 2<len(teach.goals(name))<8 and all(o and '\n' not in o for o in teach.goals(name))

def test_slides(tmp_path):
    res = CliRunner().invoke(app, ['slides', '04_resblock', '05_resnet', '--out', str(tmp_path/'s')])
    assert res.exit_code==0 and len(list((tmp_path/'s').iterdir()))==2
    html = (tmp_path/'s'/'04_resblock.slides.html').read_text(encoding='utf-8')
    assert html.count('<section')>20 and 'class="notes"' in html and 'Exercise resblock' not in html and 'image/png' in html

@pytest.fixture(params=['dist/plugin/notes.js', 'plugin/notes/notes.js'], ids=['reveal.js 6', 'reveal.js 5'])
def reveal(tmp_path, request):
    "A folder as reveal.js has it, with marks for its content"
    for o,text in {'dist/reveal.js':'var Reveal = "the script </script>";', request.param:'var RevealNotes = "the notes";',
                   'dist/reveal.css':'.its-style {}', 'dist/theme/simple.css':'@import url(https://x.org/a;b);\n@import "https://x.org/c;d";.its-theme {}'}.items():
        (tmp_path/'reveal.js'/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'reveal.js'/o).write_text(text)
    return tmp_path/'reveal.js'

def test_slides_without_a_network(reveal, tmp_path):
    "All of reveal.js is in the file, and nothing that a browser would load is left"
    res = CliRunner().invoke(app, ['slides', '04_resblock', '--out', str(tmp_path), '--reveal', str(reveal)])
    assert res.exit_code==0, res.output
    html = (tmp_path/'04_resblock.slides.html').read_text(encoding='utf-8')
    for o in ('var Reveal = ', 'the notes', '.its-style', '.its-theme', 'Reveal.initialize'): assert html.count(o)==1, o
    assert html.count('</script>')==html.count('<script') and 'x.org' not in html
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?!data:)', html)

@pytest.mark.parametrize('gone', ['dist/reveal.js', 'dist/reveal.css', 'dist/theme/simple.css', None])
def test_slides_need_all_of_reveal(gone, reveal, tmp_path):
    "What is missing is named, and how to get it; no file is left"
    if gone: (reveal/gone).unlink()
    res = CliRunner().invoke(app, ['slides', '04_resblock', '--out', str(tmp_path/'s'), '--reveal', str(reveal if gone else tmp_path/'none')])
    assert isinstance(res.exception, CourseError) and (gone or 'dist/reveal.js') in str(res.exception)
    assert 'npm install reveal.js' in str(res.exception) and '\n' not in str(res.exception) and not [*(tmp_path/'s').glob('*')]

def test_a_slide_is_a_heading_with_a_sentence():
    cells = [dict(cell_type='markdown', metadata={}, source=['## Why?\n\nIt is 1.5 times so. And more.']),
             dict(cell_type='code', metadata={}, source=['import torch\nx = 1'], outputs=[], execution_count=None),
             dict(cell_type='code', metadata={}, source=['#| default_exp a'], outputs=[], execution_count=None),
             dict(cell_type='code', metadata={}, source=['#| export\n1+1'], outputs=[{}], execution_count=None),
             dict(cell_type='markdown', metadata={}, source=['## Exercises']),
             dict(cell_type='markdown', metadata={}, source=['## Secret'])]
    got = [(c['metadata']['slideshow']['slide_type'], c['source']) for c in teach.slide_cells(cells)]
    assert got==[('slide','## Why?\n\nIt is 1.5 times so.'), ('notes','It is 1.5 times so. And more.'), ('subslide','1+1')]

@pytest.fixture
def readers(tmp_path):
    for who,done in (('ada',{'batches':'2026-03-01 10:00'}), ('Bärbel, 2',{}), ('=x',{'batches':'2026-03-02 10:00','top_k':'2026-03-02 11:00'})):
        (tmp_path/who).mkdir()
        (tmp_path/who/teach.course_mark).write_text('{}')
        if done: (tmp_path/who/'progress.json').write_text(json.dumps(done))
    return [str(tmp_path/o) for o in ('ada','Bärbel, 2','=x')]

def table(file):
    with open(file, encoding='utf-8-sig', newline='') as f: return list(csv.DictReader(f))

def test_progress_of_several(readers, tmp_path):
    res = CliRunner().invoke(app, ['progress', *readers, '--export', str(tmp_path/'all.csv')])
    assert res.exit_code==0 and res.stdout.startswith('3 readers')
    rows = table(tmp_path/'all.csv')
    assert [(o['name'],o['passed']) for o in rows]==[('ada','1'),('Bärbel, 2','0'),("'=x",'2')]   # no formula
    assert [o['data.1'] for o in rows]==['2026-03-01 10:00','','2026-03-02 10:00']
    assert set(rows[0])=={'name','passed',*(number for number,_ in check.exercises.values())}

@pytest.mark.skipif(sys.platform!='linux', reason='other systems have no such names')
def test_a_reader_with_a_name_that_is_no_text(tmp_path):
    (folder:=tmp_path/os.fsdecode(b'caf\xe9')).mkdir()
    (folder/teach.course_mark).write_text('{}')
    assert CliRunner().invoke(app, ['progress', str(folder), '--export', str(tmp_path/'a.csv')]).exit_code==0
    assert table(tmp_path/'a.csv')[0]['name']==r'caf\udce9'

def test_progress_of_one(tmp_path, monkeypatch):
    monkeypatch.setenv('RESNET_COURSE_PROGRESS', str(tmp_path/'p.json'))
    check.batches(train=73, valid=31)
    assert CliRunner().invoke(app, ['progress', '--export', str(tmp_path/'me.csv'), '--name', 'Ada L.']).exit_code==0
    row, = table(tmp_path/'me.csv')
    assert row['name']=='Ada L.' and row['passed']=='1' and row['data.1']

@pytest.mark.parametrize('args, words', [
    (['{0}'], 'name a CSV file'), (['--name','x'], 'name a CSV file'), (['{top}','--export','{top}/a.csv'], 'holds no lessons'),
    (['{top}/none','--export','{top}/a.csv'], 'is no folder'), (['{0}','--export','{top}/a.csv','--name','a','--name','b'], '2 names for 1'),
    (['--reset','--export','{top}/a.csv'], 'one of the two'), (['{0}','--export','{top}/file/a.csv'], 'is no folder'),
    (['{0}','--export','{top}/ada'], 'is a folder')])
def test_export_says_what_is_wrong(args, words, readers, tmp_path):
    (tmp_path/'file').write_text('')
    res = CliRunner().invoke(app, ['progress', *(o.format(*readers, top=tmp_path) for o in args)])
    assert res.exit_code and isinstance(res.exception, CourseError) and words in str(res.exception)
    assert not (tmp_path/'a.csv').exists()

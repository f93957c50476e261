"A reader's folder: what they wrote stays, whatever the course changes, and all of it comes with the wheel"
import json, subprocess, sys
from pathlib import Path
import pytest
from typer.testing import CliRunner
from resnet_course import check, learn
from resnet_course.cli import app
from resnet_course.kit.files import CourseError
from conftest import one_line, outside

def cell(id, text, kind='code', **more): return dict(cell_type=kind, id=id, metadata={}, source=[text], **more)
def book(*cells): return json.dumps(dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5))
def texts(file): return [learn.source(o) for o in json.loads(file.read_text(encoding='utf-8'))['cells']]

first = [cell('t', 'a text', 'markdown'), cell('s', '# exercise: f\n...'), cell('c', 'check.f(f)'), cell('m', 'more', 'markdown')]

@pytest.fixture
def home(tmp_path, monkeypatch):
    "A small course, whose lessons can be changed"
    top = tmp_path/'course'
    def write(*cells, name='nbs/00_why.ipynb'):
        (top/name).parent.mkdir(parents=True, exist_ok=True)
        (top/name).write_text(book(*cells), encoding='utf-8')
    write(*first)
    (top/'results').mkdir()
    (top/'results'/'a.json').write_text('{"a":1}')
    monkeypatch.setattr(learn, 'lessons_home', lambda: top)
    return write

@pytest.fixture
def mine(tmp_path, home):
    learn.bring(tmp_path/'mine')
    return tmp_path/'mine'/'nbs'/'00_why.ipynb'

def change(file, f):
    nb = json.loads(file.read_text(encoding='utf-8'))
    f(nb['cells'])
    file.write_text(json.dumps(nb), encoding='utf-8')
def answer(cells): cells[1]['source'] = ['# exercise: f\ndef f(): return 1']
done = '# exercise: f\ndef f(): return 1'

def test_new_text_comes_and_the_answer_stays(home, mine):
    change(mine, answer)
    home(cell('t', 'A TEXT', 'markdown'), cell('n', 'new', 'markdown'), *first[1:3])
    lines = learn.bring(mine.parent.parent)
    assert len(lines)==1 and texts(mine)==['A TEXT', 'new', done, 'check.f(f)']   # 'more' is gone from the course

def test_nothing_changed_is_nothing_written(mine):
    change(mine, answer)
    before = mine.read_bytes(), mine.stat().st_mtime_ns
    learn.bring(mine.parent.parent)
    assert (mine.read_bytes(), mine.stat().st_mtime_ns)==before

def test_a_new_stub_is_below_the_answer(home, mine):
    change(mine, answer)
    home(first[0], cell('s', '# exercise: f\ndef f(x): ...'), *first[2:])
    lines = learn.bring(mine.parent.parent)
    assert texts(mine)[1]==done and 'def f(x)' in texts(mine)[2] and any('exercise f begins' in o for o in lines)
    assert len(learn.bring(mine.parent.parent))==1 and texts(mine)[1]==done   # said once

def test_a_cell_that_both_changed_is_there_twice(home, mine):
    change(mine, lambda cells: cells[0].update(source=['my text']))
    home(cell('t', 'their text', 'markdown'), *first[1:])
    lines = learn.bring(mine.parent.parent)
    assert texts(mine)[:2]==['their text', 'my text'] and any('1 cell changed by you and by the course' in o for o in lines)

def test_cells_of_the_readers_own_stay_where_they_were(home, mine):
    def more(cells):
        cells.insert(0, cell('x', 'before all'))
        cells.insert(3, cell('y', '# exercise: f\na second try'))
        cells.append(cell('z', 'my end'))
    change(mine, more)
    home(cell('t', 'A TEXT', 'markdown'), *first[1:3])
    learn.bring(mine.parent.parent)
    got = texts(mine)
    assert got[:2]==['before all', 'A TEXT'] and got.index('# exercise: f\na second try')==got.index('# exercise: f\n...')+1
    assert got[-1]=='my end' and got.count('# exercise: f\n...')==1

def test_an_answer_outlives_its_exercise(home, mine):
    change(mine, answer)
    home(first[0], first[3])
    learn.bring(mine.parent.parent)
    assert done in texts(mine)

def test_outputs_of_what_stays_are_kept(home, mine):
    change(mine, lambda cells: cells[2].update(outputs=[dict(output_type='stream', name='stdout', text=['True'])]))
    home(cell('t', 'A TEXT', 'markdown'), *first[1:])
    learn.bring(mine.parent.parent)
    assert json.loads(mine.read_text(encoding='utf-8'))['cells'][2]['outputs']

@pytest.mark.parametrize('text', ['no JSON', '[]', '{"cells": 1}', ''])
def test_what_cannot_be_read_is_kept(text, mine):
    mine.write_text(text)
    lines = learn.bring(mine.parent.parent)
    assert mine.read_text()==text and texts(mine.with_name('00_why.new.ipynb'))[0]=='a text'
    assert any('00_why.new.ipynb' in o for o in lines)

def test_without_the_mark_nothing_is_taken_for_granted(home, mine):
    change(mine, answer)
    (mine.parent.parent/learn.course_mark).unlink()
    home(cell('t', 'A TEXT', 'markdown'), *first[1:])
    learn.bring(mine.parent.parent)
    assert done in texts(mine) and texts(mine.with_name('00_why.new.ipynb'))[0]=='A TEXT'

def test_the_notebook_of_before_is_kept(home, mine):
    change(mine, answer)
    before = mine.read_bytes()
    home(cell('t', 'A TEXT', 'markdown'), *first[1:])
    learn.bring(mine.parent.parent)
    assert (mine.parent.parent/'.before'/'nbs'/'00_why.ipynb').read_bytes()==before

def test_records(tmp_path, home, mine):
    "The course's are brought up to date; one that a reader has changed is kept"
    rec,theirs = mine.parent.parent/'results'/'a.json',tmp_path/'course'/'results'/'a.json'
    theirs.write_text('{"a":2}')
    learn.bring(mine.parent.parent)
    assert rec.read_text()=='{"a":2}'
    rec.write_text('mine')
    theirs.write_text('{"a":3}')
    learn.bring(mine.parent.parent)
    assert rec.read_text()=='mine' and rec.with_name('a.new.json').read_text()=='{"a":3}'

def test_only_into_a_folder_for_it(tmp_path, home):
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'thesis.txt').write_text('mine')
    (tmp_path/'file').write_text('')
    for name,words in [('other','holds other files'), ('file','no folder'), ('course/nbs',"the course's own"), ('course',"the course's own")]:
        with pytest.raises(CourseError) as e: learn.bring(tmp_path/name)
        assert one_line(e, words)
    assert [o.name for o in (tmp_path/'other').iterdir()]==['thesis.txt']

def test_without_solutions(tmp_path, home):
    fold = '<details><summary>{}</summary>\n\n{}\n\n</details>'
    home(cell('a', '\n'.join([fold.format('Hint', 'think'), fold.format('Solution', 'x = 1')]), 'markdown'), *first[1:],
         cell('q', 'Why?\n\n'+fold.format('Answer', 'because')+'\n\nAnd why not?', 'markdown'))
    home(first[0], name='nbs/check/judge.ipynb')
    home(first[0], name='nbs/teachers.ipynb')
    learn.bring(tmp_path/'class', solutions=False)
    got = texts(tmp_path/'class'/'nbs'/'00_why.ipynb')
    assert got[0]==fold.format('Hint', 'think') and got[-1]=='Why?\n\nAnd why not?'
    assert not (tmp_path/'class'/'nbs'/'check').exists() and not (tmp_path/'class'/'nbs'/'teachers.ipynb').exists()
    learn.bring(tmp_path/'class')   # as it was
    assert 'Solution' not in texts(tmp_path/'class'/'nbs'/'00_why.ipynb')[0]
    learn.bring(tmp_path/'class', solutions=True)
    assert 'x = 1' in texts(tmp_path/'class'/'nbs'/'00_why.ipynb')[0]

def test_solutions_are_taken_out_again(tmp_path, home):
    "Of a folder that had them; what somebody has changed is named, and kept"
    for o in ('nbs/check/judge.ipynb','nbs/check/blocks.ipynb','nbs/teachers.ipynb'): home(first[0], name=o)
    dest = tmp_path/'class'
    learn.bring(dest)
    change(dest/'nbs'/'check'/'blocks.ipynb', lambda cells: cells[0].update(source=['mine']))
    (dest/'.before').mkdir()
    said = learn.bring(dest, solutions=False)
    assert not (dest/'nbs'/'teachers.ipynb').exists() and [o.name for o in (dest/'nbs'/'check').iterdir()]==['blocks.ipynb']
    assert len(said)==3 and 'blocks.ipynb' in said[1] and '.before' in said[2]

def test_libraries_are_those_of_the_course(home):
    home(cell('i', 'import no_such_library\nfrom fastai.vision.all import *'))
    assert learn.missing_libraries()==['no_such_library']

def test_progress_is_kept_in_the_folder(mine, monkeypatch):
    monkeypatch.delenv('RESNET_COURSE_PROGRESS', raising=False)
    monkeypatch.chdir(mine.parent)
    assert check.batches(train=73, valid=31)
    assert 'batches' in (mine.parent.parent/'progress.json').read_text() and check.progress().passed.any()

def test_the_command(tmp_path, home, monkeypatch):
    opened = []
    monkeypatch.setattr(learn, 'open_lab', lambda folder: opened.append(folder) or 0)
    res = CliRunner().invoke(app, ['learn'])
    assert res.exit_code==0 and opened==[Path('resnet-lessons')] and (tmp_path/'resnet-lessons'/'nbs'/'00_why.ipynb').exists()
    monkeypatch.chdir(tmp_path/'resnet-lessons'/'nbs')
    assert CliRunner().invoke(app, ['learn']).exit_code==0 and opened[-1]==tmp_path/'resnet-lessons'
    assert CliRunner().invoke(app, ['learn', '--no-lab']).exit_code==0 and len(opened)==2

def test_without_jupyterlab(tmp_path, monkeypatch):
    monkeypatch.setattr(learn.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(CourseError) as e: learn.open_lab(tmp_path)
    assert one_line(e, 'pip install jupyterlab', '--no-lab')

def test_it_comes_with_the_wheel(built, tmp_path):
    "From the unpacked wheel, with nothing of the repository in reach: all lessons and the records that their cells read"
    _,there,size = built
    assert size<20e6
    p = subprocess.run([sys.executable,'-m','resnet_course','learn',str(tmp_path/'mine'),'--no-lab'], cwd=there,
                       env=outside(), capture_output=True, text=True)
    assert p.returncode==0, p.stderr
    got = tmp_path/'mine'
    for o in sorted((Path(__file__).parent.parent/'nbs').glob('[0-9]*.ipynb')):
        assert (got/'nbs'/o.name).exists()
        for text in texts(got/'nbs'/o.name):
            for path in learn.re.findall(r"'(\.\./results/[\w/.-]+)'", text): assert (got/'nbs'/path).exists(), (o.name, path)

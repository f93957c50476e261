"What a stranger sees: the front page, from the records"
import re, runpy
from configparser import ConfigParser
from pathlib import Path
import yaml
from conftest import saved_and_made

top = Path(__file__).parent.parent
text = (top/'README.md').read_text(encoding='utf-8')
ini = ConfigParser(delimiters=['='])
ini.read(top/'settings.ini', encoding='utf-8')

def tables(text):
    "Each Markdown table, as a list of rows"
    found = re.findall(r'(?:^\|.*\|\n)+', text, re.M)
    return [[[o.strip() for o in row.strip('|').split('|')] for row in t.splitlines() if not re.match(r'\|[\s:|-]+\|$', row)]
            for t in found]

def test_it_shows_what_the_records_say(monkeypatch):
    "Else run `.ci/execute index.ipynb` and `make readme`"
    monkeypatch.chdir(top)
    shown = saved_and_made(top/'index.ipynb')
    assert len(shown)==7 and all(a==b for a,b in shown)

def test_ten_seconds():
    "One sentence, one picture, two commands and the path come first"
    start = text.partition('\n## ')[0]
    assert start.count('> ')==2 and start.count('<picture>')==1
    assert re.findall(r'^    make (\w+)', start, re.M)==['run','test']
    path = re.findall(r'\]\(nbs/(\d\d)_\w+\.ipynb\)', start)
    assert path==[f'{i:02}' for i in range(8)] and len(start)<2000

def test_each_lesson_is_on_it():
    for o in (top/'nbs').glob('[0-9]*.ipynb'): assert f'(nbs/{o.name})' in text

def test_the_picture_for_light_and_dark():
    "Both files are there, with words for those who cannot see them"
    light,dark = (re.search(o, text)[1] for o in (r' src="([^"]+)"', r' srcset="([^"]+)"'))
    assert 'prefers-color-scheme: dark' in text and 'dark' in dark and (top/light).exists() and (top/dark).exists()
    assert re.search(r' alt="[^"]{100,}"', text)

def test_small_tables():
    "Three rows of accuracy, of speed, and of time to an accuracy; five others, and ours, side by side"
    accuracy,speed,minutes,courses = tables(text)[:4]
    assert [len(o)-1 for o in (accuracy,speed,minutes,courses)]==[3,3,3,6]
    for row in minutes[1:]: assert all(re.fullmatch(r'\d+\.\d \(\d+\.\d\)|not measured', o) for o in row[1:])
    for row in accuracy[1:]: assert re.fullmatch(r'level|[+-]\d+\.\d(, from one seed)?', row[-1])
    best = [row[-2] for row in accuracy[1:] if '92.3%' in row[-2]]
    assert best and all('xresnext' in o for o in best)
    for o in ('chapter 14','Dive into','course22p2','ARENA','timm'): assert any(o in row[0] for row in courses)

def test_pictures_hold_on_pypi(monkeypatch):
    made = {}
    monkeypatch.chdir(top)
    monkeypatch.setattr('setuptools.setup', lambda **kwargs: made.update(kwargs))
    runpy.run_path('setup.py')
    found = re.findall(r' src(?:set)?="([^"]+)"', made['long_description'])
    assert len(found)==2
    for o in found: assert (top/o.removeprefix(f'{made["url"]}/blob/main/').removesuffix('?raw=true')).exists() and o.startswith('https')

def test_how_to_cite():
    "The same version, licence and place as the package"
    cff = yaml.safe_load((top/'CITATION.cff').read_text(encoding='utf-8'))
    assert f"license='{cff['license']}'" in (top/'setup.py').read_text(encoding='utf-8')
    cfg = ini['DEFAULT']
    assert cff['cff-version']=='1.2.0' and cff['version']==cfg['version'] and cff['url']==cfg['git_url']
    assert cff['authors']==[{'name':cfg['author']}] and {'title','message','license','references'} <= set(cff)

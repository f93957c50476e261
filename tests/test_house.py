"The house: imports run down only, nothing goes in a circle, no room is too large, and the public names are the documented ones"
import ast, json, os, re, runpy, shutil, subprocess, sys
from pathlib import Path
import pytest
from conftest import outside

top = Path(__file__).parent.parent
nbs,lib = top/'nbs',top/'resnet_course'
def cells(file, kind='code'):
    "The sources of a notebook's cells of one kind"
    return [''.join(c['source']) for c in json.loads(file.read_text(encoding='utf-8'))['cells'] if c['cell_type']==kind]

def default_exp(file):
    found = [m[1] for s in cells(file) if (m:=re.match(r'#\| default_exp (\S+)', s))]
    return found[0].removesuffix('.__init__') if found else None
books = {f:default_exp(f) for f in sorted(nbs.rglob('*.ipynb')) if '.ipynb_checkpoints' not in f.parts}

# Where a module lives: its storey, and its place in the order of the lessons
floors = dict(kit=0, nbs=1, check=2, tools=2)
home = {m:(floors[f.parent.name], f.name[:2] if f.parent==nbs else '') for f,m in books.items() if m}

def imports(module):
    "The modules of the course that `module` imports, wherever in its code"
    file = lib/f'{module.replace(".","/")}.py'
    if not file.exists(): file = lib/module/'__init__.py'
    package = ['resnet_course', *module.split('.')][:None if file.name=='__init__.py' else -1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): names = [o.name for o in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package)+1-node.level] if node.level else []
            path = '.'.join([*base, *([node.module] if node.module else [])])
            names = [path, *(f'{path}.{o.name}' for o in node.names)]
        else: continue
        found |= {o.removeprefix('resnet_course.') for o in names} & set(home)
    return found - {module}

@pytest.mark.parametrize('module', home)
def test_imports_run_down(module):
    "From tools and checks to lessons to kit, and from a lesson to an earlier one"
    here = home[module]
    for other in imports(module):
        there = home[other]
        assert there[0]<here[0] or there[0]==here[0]!=1 or there<here, f'{module} imports {other}, which lies above it'

def test_nothing_goes_in_a_circle():
    done = []
    def visit(module, way=()):
        assert module not in way, f"a circle: {' imports '.join((*way, module))}"
        if module in done: return
        for o in sorted(imports(module)): visit(o, (*way, module))
        done.append(module)
    for o in home: visit(o)
    assert set(done)==set(home)

def test_checks_do_not_look_at_tools():
    tools = {m for f,m in books.items() if f.parent.name=='tools'}
    assert not [(m,o) for m in home if m.split('.')[0]=='check' for o in imports(m) if o in tools]

def test_every_module_comes_from_a_notebook():
    made = {'.'.join(f.relative_to(lib).with_suffix('').parts).removesuffix('.__init__') for f in lib.rglob('*.py')}
    assert made-{'__init__','_modidx','kit'}==set(home)

@pytest.mark.parametrize('module', home)
def test_no_module_is_too_large(module):
    file = lib/f'{module.replace(".","/")}.py'
    if not file.exists(): file = lib/module/'__init__.py'
    text = file.read_text(encoding='utf-8')
    assert len(text.splitlines())<=400 or '# long:' in text.partition('# %%')[0]

@pytest.mark.parametrize('file', books, ids=lambda f: str(f.relative_to(nbs).with_suffix('')))
def test_no_cell_is_too_large(file):
    "Forty lines, or a reason in the cell"
    long = [s for s in cells(file) if len(s.splitlines())>40 and not re.search(r'^# long: \w', s, re.M)]
    assert not long, '\n\n'.join(s[:200] for s in long)

def test_public_names_are_the_documented_ones():
    import resnet_course.all as course
    rows = re.findall(r'^\| `[\w.]+` \| (.*) \|$', '\n'.join(cells(nbs/'tools'/'all.ipynb', 'markdown')), re.M)
    documented = [o for row in rows for o in re.findall(r'`(\w+)`', row)]
    assert len(documented)>30 and sorted(course.__all__)==sorted(documented)
    scope = {}
    exec('from resnet_course.all import *', scope)
    assert set(scope)-{'__builtins__'}==set(course.__all__)

# --- what was just measured ------------------------------------------------------------------------------------------
clocks = {'perf_counter','monotonic','process_time','getrusage','sysconf','step_seconds','interleaved','fit_seconds',
          'profile_epoch','machine_peaks','peak_memory','_epoch','_memory','VmRSS','VmHWM'}

def named(node):
    "The names that the value of `node` depends on, and those of Linux for a process's memory in its texts; of a length, none"
    if isinstance(node, ast.Constant): return {*re.findall('VmRSS|VmHWM', str(node.value))}
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '')=='len': return set()
    names = {getattr(node, k) for k in ('id','attr') if hasattr(node, k)}.union(*map(named, ast.iter_child_nodes(node)))
    return names - {t.id for c in getattr(node, 'generators', ()) for t in ast.walk(c.target) if isinstance(t, ast.Name)}

def judged_times(nodes, measured):
    "The assertions among `nodes` that order what comes from the names `measured`, which grow by what is made of them"
    judged = []
    for o in nodes:
        if isinstance(o, ast.FunctionDef):
            inner = set(measured)
            judged += judged_times(o.body, inner)
            if 'load_json' in named(o): continue   # it returns what was recorded
            if any(r.value and named(r.value) & inner for r in ast.walk(o) if isinstance(r, ast.Return)): measured.add(o.name)
        elif isinstance(o, ast.ClassDef):
            if named(o) & clocks: measured.add(o.name)
        elif isinstance(o, ast.Assign):
            taken = bool(named(o.value) & measured)
            for t in (t for p in o.targets for t in ast.walk(p) if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)):
                (measured.add if taken else measured.discard)(t.id)
        elif isinstance(o, ast.Expr) and isinstance(o.value, ast.Call) and getattr(o.value.func, 'attr', '')=='append':
            if named(o.value) & measured: measured |= named(o.value.func.value)
        elif isinstance(o, ast.Assert):
            judged += [ast.unparse(c) for c in ast.walk(o) if isinstance(c, ast.Compare) and named(c) & measured
                       and any(isinstance(op, (ast.Lt,ast.LtE,ast.Gt,ast.GtE)) for op in c.ops)]
        elif hasattr(o, 'body'): judged += judged_times([*o.body, *getattr(o, 'orelse', [])], measured)
    return judged

def judged_in(code): return judged_times(ast.parse(code).body, set(clocks))

def test_the_judge_of_times():
    "It sees a time, what is made of it, and what a function or a class measures; a length is free"
    wrong = ['start = time.perf_counter()\ntook = time.perf_counter()-start\nassert took<1',
             'seconds = pd.DataFrame(interleaved(steps))\nrate = n/seconds.median()\nassert (rate>0).all()',
             'def faults(f):\n    n = getrusage(0).ru_minflt\n    f()\n    return n\nif here: assert faults(f) < 9',
             'def mb(): return int(re.search("VmRSS: *([0-9]+)", said)[1])\nbefore = mb()\nf()\nassert mb()-before < 100',
             'class Timed:\n    def f(self): self.s = time.perf_counter()\nt = Timed()\nassert 0 < t.s']
    right = ['t = interleaved(steps)\nassert len(t)>2 and list(t)==names', 't = peak_memory(f)\nt = 1\nassert t<2']
    assert all(map(judged_in, wrong)) and not any(map(judged_in, right))

@pytest.mark.parametrize('file', books, ids=lambda f: str(f.relative_to(nbs).with_suffix('')))
def test_no_lesson_judges_a_time(file): assert not judged_in('\n'.join(cells(file)))

def test_no_test_judges_a_time():
    "But on a clock of its own"
    for file in sorted((top/'tests').glob('test_*.py')):
        for o in ast.parse(file.read_text(encoding='utf-8')).body:
            if not re.search("time, 'perf_counter'|modules, 'psutil'", ast.unparse(o)): assert not judged_times([o], set(clocks)), file

# --- a clone anywhere ------------------------------------------------------------------------------------------------
def git(*args): return subprocess.run(['git','-C',top,*args], capture_output=True, text=True)
in_git = pytest.mark.skipif(git('rev-parse','--git-dir').returncode!=0, reason='not in a clone')

@in_git
def test_every_text_has_lf():
    "Whatever git is set to: a script with CRLF does not run. And notebooks keep nbdev's merge"
    files = ['.ci/run','.ci/in_step','Makefile','resnet_course/cli.py','nbs/00_why.ipynb']
    said = git('check-attr','eol','merge','--',*files).stdout
    assert said.count('eol: lf')==len(files) and 'nbs/00_why.ipynb: merge: nbdev-merge' in said
    assert not re.search('w/(crlf|mixed)', git('ls-files','--eol').stdout)

stub = '''#!/bin/sh
# stands in for a Python: makes a venv with a copy of itself
echo "$0 $*" >> "$LOG"
if [ -e "$(dirname "$0")/broken" ]; then exit 1; fi
if [ "$2" = venv ]; then
    [ "$3" = --clear ] && rm -rf "$4"
    mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; touch "$3/bin/nbdev_install_hooks"
fi
'''
@pytest.fixture(params=['plain', 'My Drive', "it's (a) \"$HOME\" $5 & `x`"])
def clone(tmp_path, request, monkeypatch):
    "The Makefile in a folder of such a name, with a Python that only notes what it is asked"
    if not shutil.which('make') or not shutil.which('bash'): pytest.skip('no make here')
    here = tmp_path/request.param/'c'
    here.mkdir(parents=True)
    for o in ('Makefile','settings.ini','setup.py'): shutil.copy(top/o, here)
    shutil.copytree(top/'.ci', here/'.ci')
    python = tmp_path/request.param/'python'
    python.write_text(stub)
    python.chmod(0o755)
    monkeypatch.setenv('LOG', str(tmp_path/'log'))
    def make(*args):
        (tmp_path/'log').write_text('')
        env = {k:v for k,v in os.environ.items() if not k.startswith(('MAKE','MFLAGS'))}
        p = subprocess.run(['make','-C',here,'run',f'PYTHON={python}',*args], env=env,
                           capture_output=True, text=True)
        return p, (tmp_path/'log').read_text()
    return here,make

def test_make_makes_a_venv_once(clone):
    here,make = clone
    p,log = make('DATA=my photos')
    assert p.returncode==0 and log.count('-m venv .venv')==1 and '-m resnet_course ladder --data my photos --resume' in log
    assert '-m venv' not in make()[1] and 'pip install' not in make()[1]
    os.utime(here/'settings.ini', (2**31,2**31))   # it changed, as after a pull
    p,log = make()
    assert p.returncode==0 and '-m venv' not in log and 'pip install' in log

def test_make_mends_its_own_venv(clone):
    here,make = clone
    make()
    for o in (here/'.venv').glob('bin/*'): o.unlink()   # as if stopped in the middle
    (here/'.venv'/'.ready').unlink()
    p,log = make()
    assert p.returncode==0 and '-m venv .venv' in log and (here/'.venv'/'.ready').exists()

@pytest.mark.parametrize('linked', [False, True])
def test_make_leaves_a_venv_of_yours(clone, linked, tmp_path):
    "One that works is used; one that does not is left as it is, also behind a link to one that make has made"
    here,make = clone
    make()
    mine = tmp_path/'mine'
    shutil.move(here/'.venv', mine)
    (mine/'.ready').unlink()
    if not linked: (mine/'.made-by-make').unlink(); shutil.move(mine, here/'.venv'); mine = here/'.venv'
    else: (here/'.venv').symlink_to(mine)
    (mine/'MINE').touch()
    p,log = make()
    assert p.returncode==0 and '-m venv' not in log and (mine/'MINE').exists()
    (mine/'.ready').unlink()
    (mine/'bin'/'broken').touch()
    p,log = make()
    assert p.returncode!=0 and 'was not made by make' in p.stderr and '-m venv' not in log
    assert (mine/'MINE').exists() and (mine/'bin'/'python').exists()

@pytest.mark.parametrize('clone', ['My Drive'], indirect=True)
def test_make_quotes(clone):
    _,make = clone
    shown = make('-n', 'VENV=/My Drive/venv', "DATA=Tom's photos $5")[0].stdout
    assert "'/My Drive/venv'/bin/python -m resnet_course" in shown and "--data 'Tom'\\''s photos $5'" in shown

# --- the package -----------------------------------------------------------------------------------------------------
def test_each_requirement_has_a_lower_bound():
    "Which `.ci/oldest` installs"
    reqs = settings()[0]
    assert all(any(o.operator=='>=' for o in s) for s in reqs.values())
    assert not reqs['typer'].contains('0.12.5')   # nor any that does not go with a newer click
    assert not reqs['typer'].contains('0.15.3') and reqs['typer'].contains('0.16.0')

def settings():
    "The requirements of settings.ini, of the library, for its development and for shards, by name"
    from configparser import ConfigParser
    from packaging.requirements import Requirement
    ini = ConfigParser(delimiters=['='])
    ini.read(top/'settings.ini', encoding='utf-8')
    return [{r.name:r.specifier for r in map(Requirement, ini['DEFAULT'][o].split())} for o in ('requirements','dev_requirements','stream_requirements')]

def lock(here=False):
    "The locked versions by name, of all Pythons or of the one that is here"
    from packaging.requirements import Requirement
    found = {}
    for o in (top/'.ci'/'requirements.txt').read_text(encoding='utf-8').splitlines():
        if not o[:1].isalnum(): continue
        r = Requirement(o.partition('\\')[0])
        if not here or not r.marker or r.marker.evaluate(): found.setdefault(r.name, []).append(str(r.specifier).removeprefix('=='))
    return found

def test_the_lock_fits_the_ranges():
    "Each version is exact, has hashes, lies in its range; and nothing is said of the machine that made it"
    locked,text = lock(),(top/'.ci'/'requirements.txt').read_text(encoding='utf-8')
    for name,within in [o for group in settings() for o in group.items()]:
        assert name in locked and all(map(within.contains, locked[name])), f'{name}: run `make lock`'
    assert 'setuptools' in locked   # builds the course itself
    assert not re.search(r'://|^-|==(?!.*\\\n    --hash=sha256:[0-9a-f]{64}\b)[\w.]', text, re.M)

def test_doctor_knows_what_was_tested():
    "Each requirement, from its lower bound to what is locked for this Python, or a newer one"
    from packaging.version import Version
    tested,locked = json.loads((lib/'tested.json').read_text(encoding='utf-8')),lock(here=True)
    assert {k:f'>={low}' for k,(low,_) in tested.items()}=={k:str(o).split(',')[-1] for k,o in settings()[0].items()}
    assert all(Version(o)<=Version(tested[k][1]) for k in tested for o in locked[k]), 'run `make lock`'

def test_a_warning_is_an_error(pytestconfig):
    "In the tests, in what they start and in the notebooks, but for those listed, each with a reason above it"
    text = (top/'.ci'/'warnings').read_text(encoding='utf-8')
    listed = [o for o in text.splitlines() if o and o[0]!='#']
    assert listed[0]=='error' and all(o.startswith('ignore:') for o in listed[1:]) and not any(',' in o for o in listed)
    assert re.search(r'\A(#.+\n(ignore:.+\n)+)+\Z', text.partition('error\n\n')[2].replace('\n\n', '\n'))
    assert {*listed} <= {*pytestconfig.getini('filterwarnings')}
    p = subprocess.run([sys.executable,'-c','import warnings; warnings.warn("so")'], capture_output=True, text=True)
    assert p.returncode==1 and p.stderr.endswith('UserWarning: so\n')
    tests = re.findall(r'^\t\$\(OFFLINE\) (.*)', (top/'Makefile').read_text(encoding='utf-8'), re.M)
    assert len(tests)==5 and all(o.startswith('$(STRICT) ') for o in tests)

def test_the_page_of_faults_shows_the_records():
    "If not, run it again: `.ci/execute nbs/tools/faults.ipynb`"
    page = json.loads((nbs/'tools'/'faults.ipynb').read_text(encoding='utf-8'))
    shown = '\n'.join(''.join(o['data']['text/plain']) for c in page['cells'] for o in c.get('outputs', ()) if 'data' in o)
    records = [json.loads(o.read_text(encoding='utf-8')) for o in (top/'results'/'faults').glob('*.json')]
    assert records and all(o['survived']==o['injected']>0==o['lost'] for o in records)
    for o in records: assert re.search(rf"^{o['name']} +{o['injected']} +{o['survived']} +0$", shown, re.M), o['name']

def test_links_of_the_readme_hold_on_pypi(monkeypatch):
    "Each goes to a file of the repository, and to the same one as in the README"
    made = {}
    monkeypatch.chdir(top)
    monkeypatch.setattr('setuptools.setup', lambda **kwargs: made.update(kwargs))
    runpy.run_path('setup.py')
    text,link = made['long_description'],re.compile(r'\]\(([^)\s]+)\)')
    before = [o for o in link.findall((top/'README.md').read_text(encoding='utf-8')) if not o.startswith('#')]
    after = [o for o in link.findall(text) if not o.startswith('#')]
    assert len(before)==len(after)>20 and all(o.startswith('https://') for o in after)
    for a,b in zip(before, after):
        assert b==(a if a.startswith('https://') else f'{made["url"]}/blob/main/{a}')
        if a!=b: assert (top/a.partition('#')[0]).exists(), a

@in_git
def test_the_package(built):
    "The source has what pip needs, and no tests without what they need; the wheel installs, and runs from there"
    names,there,_ = built
    assert {'setup.py','settings.ini','README.md','LICENSE','pyproject.toml','resnet_course/kit/files.py'} <= names
    assert not [o for o in names if o.startswith(('tests','.ci')) or '__pycache__' in o]
    found = {o.relative_to(there).as_posix() for o in there.rglob('*.py')}
    assert found=={o for o in git('ls-files','resnet_course').stdout.splitlines() if o.endswith('.py')}
    p = subprocess.run([sys.executable,'-m','resnet_course','--help'], cwd=there, env=outside(), capture_output=True, text=True)
    assert p.returncode==0 and 'ladder' in p.stdout, p.stderr

def test_make_with_odd_variables(tmp_path):
    "An empty VENV is not the system's Python, what is in a variable is not run, and CDPATH leads nowhere"
    def make(*args, **env):
        return subprocess.run(['make', '-C', top, *args], env={**os.environ, **env}, capture_output=True, text=True)
    res = make('venv', 'VENV=')
    assert res.returncode and 'VENV= is empty' in res.stderr
    make('-n', 'run', f'DATA=a$(shell touch {tmp_path}/run)b', f'VENV=a$(shell touch {tmp_path}/run)b')
    assert not (tmp_path/'run').exists()
    for script in ('run','in_step','oldest','newest','pythons','lock','venv'):
        text = (top/'.ci'/script).read_text(encoding='utf-8')
        assert text.index('unset CDPATH') < text.index('cd "$(dirname')

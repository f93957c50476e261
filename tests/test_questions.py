"Questions: every question has a folded answer, the glossary is whole, and the links of all notebooks lead somewhere"
import json, re
from pathlib import Path
import pytest

nbs = Path(__file__).parent.parent/'nbs'
files = [*sorted(o for o in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts), nbs.parent/'index.ipynb']
books = {f: json.loads(f.read_text(encoding='utf-8'))['cells'] for f in files}
lesson = nbs/'19_questions.ipynb'

def texts(file, kind='markdown'): return [''.join(c['source']) for c in books[file] if c['cell_type']==kind]
def headings(file): return re.findall(r'^#+ (.*)$', '\n'.join(texts(file)), re.M)

# --- questions and answers --------------------------------------------------------------------------------------
md = texts(lesson)
starts = {h.split('\n')[0]: i for i,h in enumerate(md) if h.startswith('## ')}
asked = md[starts['## The questionnaire of chapter 14']:starts['## Further research']]
questions = {int(m[1]): (m[2], q) for q in asked if (m := re.match(r'### (\d+)\. (.*)\n', q))}
# Blank lines around the answer: without them Markdown shows it as it is typed.
fold = re.compile(r'<details><summary>Answer</summary>\n\n(.*?)\n\n</details>', re.S)
def answer(n): return ''.join(fold.findall(questions[n][1]))

def test_questions_are_numbered_and_ask():
    assert list(questions) == list(range(1, len(questions)+1)) and len(questions) > 22
    for heading,_ in questions.values(): assert heading.endswith('?'), heading

def test_each_has_one_folded_answer_that_says_something():
    for n,(heading,q) in questions.items():
        assert len(fold.findall(q)) == 1, heading
        assert len(answer(n).split()) > 20, heading
        assert 'details' not in answer(n), heading
        assert re.search(r'\]\(\d\d_\w+\.ipynb\)', answer(n)), f'no lesson is named: {heading}'

def test_no_answer_stands_outside_a_fold():
    for n,(heading,q) in questions.items(): assert fold.sub('', q).strip() == f'### {n}. {heading}', heading
    for o in asked:   # besides questions there are headings of sections, and a line on what they hold
        assert o.startswith('### ') or re.fullmatch(r'## [^\n]*(\n\n[^\n]{,120})?', o), o

def test_no_cell_comes_right_after_another():
    kinds = [(c['cell_type'], ''.join(c['source'])) for c in books[lesson]]
    first = next(i for i,(_,s) in enumerate(kinds) if s.startswith('### 1. '))
    last = next(i for i,(_,s) in enumerate(kinds) if s.startswith('## Further research'))
    for (before,_),(kind,s) in zip(kinds[first:last], kinds[first+1:last]):
        assert not (before==kind=='code'), f'two cells for one question: {s}'

# What each of the chapter's 22 questions is about: words of its heading | words of its answer
chapter = """mnist one vector photos | stride flatten size
imagenette | mean channel
adaptive | size windows
average pooling | windows mean
flatten adaptive | axes linear
skip connection | added
why deeper | gradient plain
14-1 lead skip | training test overfitting
identity mapping | returns
residual block compute batch norm | conv2(conv1(x))
resnets residuals | target minus
stride width | pooling 1x1
1x1 dot product | pixel channels
1x1 `f.conv2d` `nn.conv2d` shape | height width channels
`noop` return | argument
14-3 | loss jagged skip directions
top-5 top-1 | label
stem | first layers
stem plain residual blocks | arithmetic
bottleneck differ basic | three 3x3
bottleneck faster | arithmetic width
fully convolutional progressive resizing | weights size"""

@pytest.mark.parametrize('n', range(1,23))
def test_the_questionnaire_is_covered(n):
    "In the chapter's order"
    for words,text in zip(chapter.split('\n')[n-1].split(' | '), (questions[n][0], answer(n))):
        assert not [w for w in words.split() if w not in text.lower()], text

def test_the_four_research_tasks_are_there():
    tasks = [h for h in headings(lesson) if h.startswith('Task ')]
    for task,word in zip(tasks, ('convolutional','einsum','top-5','smoothing'), strict=True): assert word in task

# --- glossary ---------------------------------------------------------------------------------------------------
glossary = md[starts['## Glossary']].split('\n\n')[-1]
items = re.findall(r'^- .*(?:\n  .*)*', glossary, re.M)
item = re.compile(r'- <span id="([^"]+)">\*\*(.+?)\*\*</span>: (.+) \[(.+)\]\((\d\d_\w+\.ipynb)\)')

def test_each_term_has_a_line_and_an_anchor_of_its_name():
    assert len(items) > 50 and '\n'.join(items) == glossary
    for o in items:
        m = item.fullmatch(' '.join(l.strip() for l in o.split('\n')))
        assert m and o.count('\n') < 2, o
        assert m[1] == re.sub(r'[^a-z0-9]+', '-', m[2].lower()).strip('-') and m[4] == headings(nbs/m[5])[0], o

terms = [re.search(r'\*\*(.+?)\*\*', o)[1] for o in items]

def test_terms_are_sorted_and_stand_once():
    def key(term): return re.sub(r'[^a-z0-9 ]', '', term.lower().replace('-', ' '))
    assert [*map(key, terms)] == sorted({*map(key, terms)})

@pytest.mark.parametrize('term', terms)
def test_each_term_is_in_the_text_of_the_lesson_that_it_names(term):
    name = re.search(r'\((\d\d_\w+\.ipynb)\)$', items[terms.index(term)])[1]
    text = ' '.join(texts(nbs/name, 'code' if term in ('xb','yb') else 'markdown'))   # these two are names in code
    assert re.search(rf'\b{re.escape(term)}s?\b'.replace(r'\ ', r'\s+'), text, re.I), f'not in {name}'

# --- links, of all notebooks ------------------------------------------------------------------------------------
def links(file):
    "(text, target) of each link in the Markdown of `file`, code left out"
    code = re.compile(r'```.*?```|`[^`\n]*`', re.S)
    text = ' '.join(' '.join(code.sub('', t).split()) for t in texts(file))   # a link may run over two lines
    return re.findall(r'\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)', text)

def anchors(file): return set(re.findall(r'\bid="([^"]+)"', '\n'.join(texts(file))))

@pytest.mark.parametrize('file', list(books), ids=lambda f: f.stem)
def test_links_lead_somewhere(file):
    for text,target in links(file):
        if re.match(r'https?://', target): continue
        path,_,anchor = target.partition('#')
        there = (file.parent/path).resolve() if path else file
        assert there.exists(), f'[{text}]({target})'
        # Headings have other anchors in JupyterLab than on the site; those of the glossary are the same in both.
        assert not anchor or anchor in anchors(there), f'[{text}]({target})'

def test_links_name_the_lesson_and_its_heading_rightly():
    "A link to a lesson reads as its title does, and after a colon comes a heading that is in it. No lesson is a number"
    found = [(t,(f.parent/o).resolve()) for f in files for t,o in links(f) if re.search(r'^(?!https?:).*\d\d_\w+\.ipynb$', o)]
    assert len(found) > 100
    for text,target in found:
        title = headings(target)[0]
        assert text==title or text.startswith(f'{title}: ') and text[len(title)+2:] in headings(target)[1:], (text, target)
    for f in files:
        for c in books[f]: assert not re.search(r'\blessons?\s+\d', ''.join(c['source']), re.I), (f.name, ''.join(c['source']))

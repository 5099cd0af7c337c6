import pytest
from markdown_it import MarkdownIt

from hub.markdown import code, code_block, table


@pytest.mark.parametrize('text', ['```\n# out', '````', 'plain'])
def test_a_block_of_code_does_not_end_inside(text: str) -> None:
    page = MarkdownIt().render(code_block(text) + 'after')
    assert page.count('<pre>') == 1
    assert '<h1>' not in page
    assert page.endswith('<p>after</p>\n')


def test_an_empty_name_is_called_so() -> None:
    assert code(' ') == '(empty)'


def test_a_bar_in_a_cell_is_no_border() -> None:
    page = MarkdownIt().enable('table').render(table(['a', 'b'], [[code('x|y'), '1']]))
    assert page.count('<td') == 2
    assert '<code>x|y</code>' in page

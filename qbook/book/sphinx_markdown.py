"""The base of the book's directives: those whose content is Markdown that the program writes."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class Markdown(SphinxDirective):
    """A directive whose content is Markdown made by the program."""

    def parse(self, lines):
        container = nodes.container()
        self.state.nested_parse(StringList(lines, self.env.docname), self.content_offset, container)
        return container.children

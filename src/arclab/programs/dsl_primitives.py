"""The primitives of the language arc_dsl: what each one takes, gives and does, with an example that is true.

    PRIMITIVES["add"].parameters, .result, .says, .example

A grid is a tuple of rows, a cell is a colour 0 to 9. Indices are a frozenset of (row, column); an object is a frozenset of
(colour, (row, column)); a patch is either of the two. Rows count from the top, columns from the left, both from 0. Examples
know G, P and O below. The primitives themselves are of the package reasoning-gym (see dsl.py), which says little about them.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache

G = ((0, 0, 1), (0, 2, 1))
P = frozenset({(1, 2), (3, 5)})
O = frozenset({(3, (1, 2)), (4, (3, 5))})


@dataclass(frozen=True, slots=True)
class Primitive:
    """signature: as Python writes it. says: one sentence. example: an expression that is true."""

    name: str
    signature: str
    says: str
    example: str

    @property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """(name, type) of each."""
        return _types(self.signature)[0]

    @property
    def result(self) -> str:
        """The type of what it gives."""
        return _types(self.signature)[1]


@cache
def _types(signature: str) -> tuple[tuple[tuple[str, str], ...], str]:
    (function,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(function, ast.FunctionDef) and function.returns is not None
    taken = tuple((each.arg, ast.unparse(each.annotation)) for each in function.args.args if each.annotation)
    return taken, ast.unparse(function.returns)


# Signature | what it does, then the example.
_NUMBERS = """
identity(x: Any) -> Any | Gives back what it gets.
    identity(5) == 5
add(a: Numerical, b: Numerical) -> Numerical | Sums numbers or pairs; a number is added to both parts of a pair.
    add((1, 2), 3) == (4, 5)
subtract(a: Numerical, b: Numerical) -> Numerical | Takes b from a, for pairs part by part.
    subtract((5, 3), (1, 2)) == (4, 1)
multiply(a: Numerical, b: Numerical) -> Numerical | Multiplies numbers or pairs part by part.
    multiply((2, 3), 2) == (4, 6)
divide(a: Numerical, b: Numerical) -> Numerical | Divides and rounds down, for pairs part by part.
    divide((7, 6), 2) == (3, 3)
invert(n: Numerical) -> Numerical | Changes the sign.
    invert((1, -2)) == (-1, 2)
even(n: Integer) -> Boolean | Is the number divisible by two?
    even(4) and not even(3)
double(n: Numerical) -> Numerical | Times two.
    double((1, 3)) == (2, 6)
halve(n: Numerical) -> Numerical | Half of it, rounded down.
    halve((5, 4)) == (2, 2)
flip(b: Boolean) -> Boolean | True becomes false, and the other way round.
    flip(False) is True
equality(a: Any, b: Any) -> Boolean | Are both the same value?
    equality((1, 2), (1, 2))
greater(a: Integer, b: Integer) -> Boolean | Is a more than b?
    greater(3, 2) and not greater(2, 2)
both(a: Boolean, b: Boolean) -> Boolean | Are a and b true?
    both(True, True) and not both(True, False)
either(a: Boolean, b: Boolean) -> Boolean | Is at least one of them true?
    either(False, True) and not either(False, False)
increment(x: Numerical) -> Numerical | One more.
    increment((1, -2)) == (2, -1)
decrement(x: Numerical) -> Numerical | One less.
    decrement((1, 4)) == (0, 3)
crement(x: Numerical) -> Numerical | One further away from zero; zero stays.
    crement((2, -2)) == (3, -3) and crement(0) == 0
sign(x: Numerical) -> Numerical | -1, 0 or 1, as the number is below, at or above zero.
    sign((-5, 3)) == (-1, 1)
positive(x: Integer) -> Boolean | Is the number above zero?
    positive(1) and not positive(0)
toivec(i: Integer) -> Integertuple | The vector that goes i rows down.
    toivec(2) == (2, 0)
tojvec(j: Integer) -> Integertuple | The vector that goes j columns to the right.
    tojvec(2) == (0, 2)
interval(start: Integer, stop: Integer, step: Integer) -> tuple | The numbers from start up to, without, stop.
    interval(1, 6, 2) == (1, 3, 5)
astuple(a: Integer, b: Integer) -> Integertuple | The pair of two numbers.
    astuple(1, 2) == (1, 2)
"""
_CONTAINERS = """
contained(value: Any, container: Container) -> Boolean | Is the value one of the items?
    contained(2, (1, 2))
combine(a: Container, b: Container) -> Container | The items of both, in one container of a's kind.
    combine((1,), (2, 1)) == (1, 2, 1)
intersection(a: FrozenSet, b: FrozenSet) -> FrozenSet | The items that are in both sets.
    intersection(frozenset({1, 2}), frozenset({2, 3})) == frozenset({2})
difference(a: Container, b: Container) -> Container | The items of a that are not in b.
    difference((1, 2, 3), (2,)) == (1, 3)
dedupe(iterable: tuple) -> tuple | Each item once, where it stood first.
    dedupe((2, 1, 2)) == (2, 1)
order(container: Container, compfunc: Callable) -> tuple | The items sorted by what compfunc gives, smallest first.
    order(frozenset({(1, 2), (3,)}), size) == ((3,), (1, 2))
repeat(item: Any, num: Integer) -> tuple | The item num times.
    repeat(7, 3) == (7, 7, 7)
size(container: Container) -> Integer | How many items it has.
    size(P) == 2
merge(containers: ContainerContainer) -> Container | The items of all containers in one, of the outer one's kind.
    merge(((1, 2), (3,))) == (1, 2, 3)
maximum(container: IntegerSet) -> Integer | The largest number; 0 of nothing.
    maximum((1, 5, 2)) == 5 and maximum(()) == 0
minimum(container: IntegerSet) -> Integer | The smallest number; 0 of nothing.
    minimum((4, 1, 2)) == 1
valmax(container: Container, compfunc: Callable) -> Integer | The largest value that compfunc gives for an item.
    valmax(((1,), (1, 2)), size) == 2
valmin(container: Container, compfunc: Callable) -> Integer | The smallest value that compfunc gives for an item.
    valmin(((1,), (1, 2)), size) == 1
argmax(container: Container, compfunc: Callable) -> Any | The item for which compfunc gives most.
    argmax(((1,), (1, 2)), size) == (1, 2)
argmin(container: Container, compfunc: Callable) -> Any | The item for which compfunc gives least.
    argmin(((1, 2), (1,)), size) == (1,)
mostcommon(container: Container) -> Any | The item that comes most often.
    mostcommon((1, 2, 2, 3)) == 2
leastcommon(container: Container) -> Any | The item that comes least often.
    leastcommon((2, 1, 2)) == 1
initset(value: Any) -> FrozenSet | The set with this one item.
    initset(3) == frozenset({3})
sfilter(container: Container, condition: Callable) -> Container | The items for which the condition holds.
    sfilter((1, 2, 4), even) == (2, 4)
mfilter(container: Container, function: Callable) -> FrozenSet
    The items for which the function holds, and of those all items in one.
    mfilter(frozenset({(1, 2), (3,)}), lambda x: size(x) == 2) == frozenset({1, 2})
extract(container: Container, condition: Callable) -> Any | The first item for which the condition holds.
    extract((3, 4, 9), lambda x: x - 3) == 4
totuple(container: FrozenSet) -> tuple | The items as a tuple.
    totuple(frozenset({3})) == (3,)
first(container: Container) -> Any | The first item.
    first((4, 5, 5, 3)) == 4
last(container: Container) -> Any | The last item.
    last((3, 4, 4, 4, 9, 9)) == 9
insert(value: Any, container: FrozenSet) -> FrozenSet | The set with one more item.
    insert(2, frozenset({1})) == frozenset({1, 2})
remove(value: Any, container: Container) -> Container | The items without this value.
    remove(1, (1, 2, 1)) == (2,)
other(container: Container, value: Any) -> Any | The first item that is not this value.
    other((1, 2), 1) == 2
product(a: Container, b: Container) -> FrozenSet | Each item of a paired with each of b.
    product((1, 2), (3,)) == frozenset({(1, 3), (2, 3)})
pair(a: tuple, b: tuple) -> tupletuple | The items of both side by side.
    pair((1, 2), (3, 4)) == ((1, 3), (2, 4))
"""
_FUNCTIONS = """
branch(condition: Boolean, if_value: Any, else_value: Any) -> Any | The first value if the condition is true, else the second.
    branch(True, 1, 2) == 1
compose(outer: Callable, inner: Callable) -> Callable | The function that applies inner, then outer.
    compose(double, increment)(3) == 8
chain(h: Callable, g: Callable, f: Callable) -> Callable | The function that applies f, then g, then h.
    chain(double, increment, halve)(4) == 6
matcher(function: Callable, target: Any) -> Callable | The function that asks whether function gives the target.
    matcher(size, 2)((1, 2))
rbind(function: Callable, fixed: Any) -> Callable | The function with its last argument given.
    rbind(subtract, 1)(5) == 4
lbind(function: Callable, fixed: Any) -> Callable | The function with its first argument given.
    lbind(subtract, 1)(5) == -4
power(function: Callable, n: Integer) -> Callable | The function applied n times in a row.
    power(double, 3)(1) == 8
fork(outer: Callable, a: Callable, b: Callable) -> Callable | The function that gives outer what a and b make of one value.
    fork(add, double, halve)(4) == 10
apply(function: Callable, container: Container) -> Container | What the function makes of each item.
    apply(double, (1, 2)) == (2, 4)
rapply(functions: Container, value: Any) -> Container | What each function makes of the value.
    rapply((double, halve), 4) == (8, 2)
mapply(function: Callable, container: ContainerContainer) -> FrozenSet
    What the function makes of each item, all in one container.
    mapply(dneighbors, frozenset({(1, 1)})) == dneighbors((1, 1))
papply(function: Callable, a: tuple, b: tuple) -> tuple | The function of the first items, of the second ones, and so on.
    papply(add, (1, 2), (3, 4)) == (4, 6)
mpapply(function: Callable, a: tuple, b: tuple) -> tuple | As papply, with the results in one container.
    mpapply(astuple, (1, 2), (3, 4)) == (1, 3, 2, 4)
prapply(function: Callable, a: Container, b: Container) -> FrozenSet | The function of each item of a with each of b.
    prapply(add, (1, 2), (10,)) == frozenset({11, 12})
"""
_COLOURS_AND_SIZES = """
mostcolor(element: Element) -> Integer | The colour that most cells have.
    mostcolor(G) == 0
leastcolor(element: Element) -> Integer | The colour that fewest cells have.
    leastcolor(G) == 2
height(piece: Piece) -> Integer | The number of rows, of a patch those of its bounding box.
    height(G) == 2 and height(P) == 3
width(piece: Piece) -> Integer | The number of columns, of a patch those of its bounding box.
    width(G) == 3 and width(P) == 4
shape(piece: Piece) -> Integertuple | Height and width.
    shape(G) == (2, 3)
portrait(piece: Piece) -> Boolean | Is it higher than wide?
    not portrait(G) and portrait(dmirror(G))
colorcount(element: Element, value: Integer) -> Integer | The number of cells of this colour.
    colorcount(G, 1) == 2
colorfilter(objs: Objects, value: Integer) -> Objects | The objects of this colour.
    colorfilter(frozenset({frozenset({(3, (0, 0))})}), 4) == frozenset()
sizefilter(container: Container, n: Integer) -> FrozenSet | The items that have n items themselves.
    sizefilter(((1,), (1, 2)), 2) == frozenset({(1, 2)})
palette(element: Element) -> IntegerSet | The colours that occur.
    palette(G) == frozenset({0, 1, 2})
numcolors(element: Element) -> IntegerSet | The number of colours that occur.
    numcolors(G) == 3
color(obj: Object) -> Integer | The colour of an object, read from one of its cells.
    color(frozenset({(3, (0, 1))})) == 3
square(piece: Piece) -> Boolean | Is it as high as wide, and a patch without holes?
    square(((1, 2), (3, 4))) and not square(P)
vline(patch: Patch) -> Boolean | Is it a vertical line without gaps?
    vline(connect((0, 1), (3, 1)))
hline(patch: Patch) -> Boolean | Is it a horizontal line without gaps?
    hline(connect((1, 0), (1, 3)))
index(grid: Grid, loc: Integertuple) -> Integer | The colour at a place; None outside of the grid.
    index(G, (1, 1)) == 2 and index(G, (5, 5)) is None
"""
_PATCHES = """
asindices(grid: Grid) -> Indices | All places of the grid.
    asindices(((1, 2),)) == frozenset({(0, 0), (0, 1)})
ofcolor(grid: Grid, value: Integer) -> Indices | The places of this colour.
    ofcolor(G, 2) == frozenset({(1, 1)})
ulcorner(patch: Patch) -> Integertuple | The upper left corner of the bounding box.
    ulcorner(P) == (1, 2)
urcorner(patch: Patch) -> Integertuple | The upper right corner of the bounding box.
    urcorner(P) == (1, 5)
llcorner(patch: Patch) -> Integertuple | The lower left corner of the bounding box.
    llcorner(P) == (3, 2)
lrcorner(patch: Patch) -> Integertuple | The lower right corner of the bounding box.
    lrcorner(P) == (3, 5)
toindices(patch: Patch) -> Indices | The places of an object, without its colours.
    toindices(O) == P
recolor(value: Integer, patch: Patch) -> Object | The patch as an object of one colour.
    recolor(5, frozenset({(0, 1)})) == frozenset({(5, (0, 1))})
shift(patch: Patch, directions: Integertuple) -> Patch | The patch moved by so many rows and columns.
    shift(frozenset({(0, 1)}), (2, 3)) == frozenset({(2, 4)})
normalize(patch: Patch) -> Patch | The patch moved so that its bounding box begins at (0, 0).
    normalize(frozenset({(3, 4)})) == frozenset({(0, 0)})
dneighbors(loc: Integertuple) -> Indices | The four places that share an edge with this one.
    dneighbors((1, 1)) == frozenset({(0, 1), (2, 1), (1, 0), (1, 2)})
ineighbors(loc: Integertuple) -> Indices | The four places that share only a corner with this one.
    ineighbors((1, 1)) == frozenset({(0, 0), (0, 2), (2, 0), (2, 2)})
neighbors(loc: Integertuple) -> Indices | All eight places around this one.
    size(neighbors((1, 1))) == 8
uppermost(patch: Patch) -> Integer | The first row that it reaches.
    uppermost(P) == 1
lowermost(patch: Patch) -> Integer | The last row that it reaches.
    lowermost(P) == 3
leftmost(patch: Patch) -> Integer | The first column that it reaches.
    leftmost(P) == 2
rightmost(patch: Patch) -> Integer | The last column that it reaches.
    rightmost(P) == 5
hmatching(a: Patch, b: Patch) -> Boolean | Is there a row that both have cells in?
    hmatching(frozenset({(0, 0)}), frozenset({(0, 5)}))
vmatching(a: Patch, b: Patch) -> Boolean | Is there a column that both have cells in?
    vmatching(frozenset({(0, 0)}), frozenset({(5, 0)}))
manhattan(a: Patch, b: Patch) -> Integer | The fewest steps, up, down or sideways, from one to the other.
    manhattan(frozenset({(0, 0)}), frozenset({(2, 1)})) == 3
adjacent(a: Patch, b: Patch) -> Boolean | Do cells of them share an edge?
    adjacent(P, frozenset({(3, 4)})) and not adjacent(P, frozenset({(1, 0)}))
bordering(patch: Patch, grid: Grid) -> Boolean | Does it touch the edge of the grid?
    bordering(frozenset({(0, 1)}), G)
centerofmass(patch: Patch) -> Integertuple | The mean place, rounded down.
    centerofmass(P) == (2, 3)
center(patch: Patch) -> Integertuple | The middle of the bounding box.
    center(P) == (2, 4)
position(a: Patch, b: Patch) -> Integertuple | The direction from a to b, -1, 0 or 1 in each part.
    position(frozenset({(0, 0)}), frozenset({(4, 5)})) == (1, 1)
corners(patch: Patch) -> Indices | The four corners of the bounding box.
    corners(P) == frozenset({(1, 2), (1, 5), (3, 2), (3, 5)})
connect(a: Integertuple, b: Integertuple) -> Indices
    The straight or diagonal line between two places; nothing if there is none.
    connect((0, 0), (2, 2)) == frozenset({(0, 0), (1, 1), (2, 2)})
vfrontier(location: Integertuple) -> Indices | The whole column through a place, 30 rows of it.
    size(vfrontier((3, 4))) == 30 and vline(vfrontier((3, 4)))
hfrontier(location: Integertuple) -> Indices | The whole row through a place, 30 columns of it.
    size(hfrontier((3, 4))) == 30 and hline(hfrontier((3, 4)))
backdrop(patch: Patch) -> Indices | All places of the bounding box.
    size(backdrop(P)) == 12 and backdrop(P) == product(interval(1, 4, 1), interval(2, 6, 1))
delta(patch: Patch) -> Indices | The places of the bounding box that the patch leaves free.
    delta(P) == difference(backdrop(P), P)
gravitate(source: Patch, destination: Patch) -> Integertuple | The way that source has to move until it touches destination.
    gravitate(frozenset({(0, 0)}), frozenset({(4, 0)})) == (3, 0)
inbox(patch: Patch) -> Indices | The outline one step inside of the bounding box.
    inbox(frozenset({(0, 0), (3, 3)})) == frozenset({(1, 1), (1, 2), (2, 1), (2, 2)})
outbox(patch: Patch) -> Indices | The outline one step outside of the bounding box.
    outbox(frozenset({(1, 1), (2, 1)})) == box(frozenset({(0, 0), (3, 2)}))
box(patch: Patch) -> Indices | The outline of the bounding box.
    box(frozenset({(0, 0), (2, 2)})) == neighbors((1, 1))
shoot(start: Integertuple, direction: Integertuple) -> Indices | The line from a place into a direction, 42 steps long.
    size(shoot((0, 0), (0, 1))) == 43
"""
_OBJECTS = """
objects(grid: Grid, univalued: Boolean, diagonal: Boolean, without_bg: Boolean) -> Objects
    The connected pieces: of one colour or not, corners connecting or not, without the commonest colour or with it.
    objects(G, True, False, True) == frozenset({frozenset({(1, (0, 2)), (1, (1, 2))}), frozenset({(2, (1, 1))})})
partition(grid: Grid) -> Objects | For each colour the object of all its cells.
    size(partition(G)) == 3
fgpartition(grid: Grid) -> Objects | As partition, without the commonest colour.
    size(fgpartition(((1, 1), (2, 1)))) == 1
toobject(patch: Patch, grid: Grid) -> Object | The places with the colours that the grid has there.
    toobject(frozenset({(1, 1)}), G) == frozenset({(2, (1, 1))})
asobject(grid: Grid) -> Object | The whole grid as an object.
    asobject(((7,),)) == frozenset({(7, (0, 0))})
occurrences(grid: Grid, obj: Object) -> Indices | The places where the object, as it is, is found in the grid.
    occurrences(G, frozenset({(0, (0, 0)), (1, (0, 1))})) == frozenset({(0, 1)})
frontiers(grid: Grid) -> Objects | The rows and columns that have one colour only.
    frontiers(((1, 1), (2, 3))) == frozenset({frozenset({(1, (0, 0)), (1, (0, 1))})})
hperiod(obj: Object) -> Integer | After how many columns the pattern repeats.
    hperiod(asobject(((1, 3, 1, 3),))) == 2
vperiod(obj: Object) -> Integer | After how many rows the pattern repeats.
    vperiod(asobject(((1,), (3,), (1,), (3,)))) == 2
"""
_GRIDS = """
crop(grid: Grid, start: Integertuple, dims: Integertuple) -> Grid | The part of this height and width that begins at start.
    crop(G, (0, 1), (2, 2)) == ((0, 1), (2, 1))
rot90(grid: Grid) -> Grid | Turned clockwise by a quarter.
    rot90(((1, 2), (3, 4))) == ((3, 1), (4, 2))
rot180(grid: Grid) -> Grid | Turned by a half.
    rot180(((1, 2), (3, 4))) == ((4, 3), (2, 1))
rot270(grid: Grid) -> Grid | Turned anticlockwise by a quarter.
    rot270(((1, 2), (3, 4))) == ((2, 4), (1, 3))
hmirror(piece: Piece) -> Piece | Top and bottom change places.
    hmirror(((1, 2), (3, 4))) == ((3, 4), (1, 2))
vmirror(piece: Piece) -> Piece | Left and right change places.
    vmirror(((1, 2), (3, 4))) == ((2, 1), (4, 3))
dmirror(piece: Piece) -> Piece | Rows become columns.
    dmirror(((1, 2), (3, 4))) == ((1, 3), (2, 4))
cmirror(piece: Piece) -> Piece | Mirrored at the diagonal from lower left to upper right.
    cmirror(((1, 2), (3, 4))) == ((4, 2), (3, 1))
fill(grid: Grid, value: Integer, patch: Patch) -> Grid | The grid with one colour at these places.
    fill(G, 5, frozenset({(0, 0), (1, 1)})) == ((5, 0, 1), (0, 5, 1))
paint(grid: Grid, obj: Object) -> Grid | The grid with the object's colours at its places.
    paint(G, O) == ((0, 0, 1), (0, 2, 3))
underfill(grid: Grid, value: Integer, patch: Patch) -> Grid | As fill, but only where the grid has its commonest colour.
    underfill(G, 5, frozenset({(0, 0), (1, 1)})) == ((5, 0, 1), (0, 2, 1))
underpaint(grid: Grid, obj: Object) -> Grid | As paint, but only where the grid has its commonest colour.
    underpaint(G, frozenset({(3, (0, 0)), (4, (1, 1))})) == ((3, 0, 1), (0, 2, 1))
hupscale(grid: Grid, factor: Integer) -> Grid | Each column several times.
    hupscale(((1, 2),), 2) == ((1, 1, 2, 2),)
vupscale(grid: Grid, factor: Integer) -> Grid | Each row several times.
    vupscale(((1, 2),), 2) == ((1, 2), (1, 2))
upscale(element: Element, factor: Integer) -> Element | Each cell as a square of this side.
    upscale(((1, 2),), 2) == ((1, 1, 2, 2), (1, 1, 2, 2))
downscale(grid: Grid, factor: Integer) -> Grid | Only every so many-th row and column, from the first.
    downscale(((1, 1, 2, 2), (1, 1, 2, 2)), 2) == ((1, 2),)
hconcat(a: Grid, b: Grid) -> Grid | b to the right of a.
    hconcat(((1,), (2,)), ((3,), (4,))) == ((1, 3), (2, 4))
vconcat(a: Grid, b: Grid) -> Grid | b below a.
    vconcat(((1, 2),), ((3, 4),)) == ((1, 2), (3, 4))
subgrid(patch: Patch, grid: Grid) -> Grid | The part of the grid in the patch's bounding box.
    subgrid(frozenset({(0, 1), (1, 2)}), G) == ((0, 1), (2, 1))
hsplit(grid: Grid, n: Integer) -> tuple | n parts of the grid, side by side.
    hsplit(((1, 2, 3, 4),), 2) == (((1, 2),), ((3, 4),))
vsplit(grid: Grid, n: Integer) -> tuple | n parts of the grid, one above the other.
    vsplit(((1,), (2,)), 2) == (((1,),), ((2,),))
cellwise(a: Grid, b: Grid, fallback: Integer) -> Grid | The colour where both grids agree, elsewhere the fallback.
    cellwise(((1, 2),), ((1, 3),), 0) == ((1, 0),)
replace(grid: Grid, replacee: Integer, replacer: Integer) -> Grid | One colour becomes another.
    replace(G, 1, 2) == ((0, 0, 2), (0, 2, 2))
switch(grid: Grid, a: Integer, b: Integer) -> Grid | Two colours change places.
    switch(((1, 2, 3),), 1, 2) == ((2, 1, 3),)
canvas(value: Integer, dimensions: Integertuple) -> Grid | A grid of one colour.
    canvas(3, (1, 2)) == ((3, 3),)
cover(grid: Grid, patch: Patch) -> Grid | The grid with its commonest colour at these places.
    cover(G, frozenset({(1, 1)})) == ((0, 0, 1), (0, 0, 1))
trim(grid: Grid) -> Grid | Without the outermost rows and columns.
    trim(((1, 2, 3), (4, 5, 6), (7, 8, 9))) == ((5,),)
move(grid: Grid, obj: Object, offset: Integertuple) -> Grid | The grid with the object covered and painted elsewhere.
    move(G, frozenset({(2, (1, 1))}), (-1, 0)) == ((0, 2, 1), (0, 0, 1))
tophalf(grid: Grid) -> Grid | The upper half, without a middle row.
    tophalf(((1,), (2,), (3,))) == ((1,),)
bottomhalf(grid: Grid) -> Grid | The lower half, without a middle row.
    bottomhalf(((1,), (2,), (3,))) == ((3,),)
lefthalf(grid: Grid) -> Grid | The left half, without a middle column.
    lefthalf(((1, 2, 3),)) == ((1,),)
righthalf(grid: Grid) -> Grid | The right half, without a middle column.
    righthalf(((1, 2, 3),)) == ((3,),)
compress(grid: Grid) -> Grid | Without rows and columns that have one colour only.
    compress(((1, 1, 1), (1, 2, 3))) == ((2, 3),)
"""


def _rows() -> dict[str, Primitive]:
    found = {}
    for table in (_NUMBERS, _CONTAINERS, _FUNCTIONS, _COLOURS_AND_SIZES, _PATCHES, _OBJECTS, _GRIDS):
        for entry in re.split(r"\n(?! )", table.strip()):
            signature, says, example = re.split(r" \| |\n +", entry)
            name = signature.partition("(")[0]
            assert name not in found, name
            found[name] = Primitive(name, signature, says, example)
    return found


PRIMITIVES = _rows()

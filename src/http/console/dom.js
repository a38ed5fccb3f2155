// Writing into the page. Everything goes in as text, never as markup; what has not changed is not touched, so that
// a focus, a selection and a screen reader's place stay where they are.

export function byId(id) {
  return document.getElementById(id);
}

/** element("td", { class: "number" }, "5", child...) */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

export function hide(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

export function mark(node, value) {
  if (node.dataset.is !== value) node.dataset.is = value;
}

/** Makes `parent` have one child for each item, in order, and updates those that were there. */
export function each(parent, items, keyOf, make, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const seen = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    let key = keyOf(item);
    while (seen.has(key)) key += "+";
    seen.add(key);
    let child = known.get(key);
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key;
    }
    known.delete(key);
    update(child, item);
    if (child === place) {
      place = place.nextElementSibling;
    } else {
      const focused = document.activeElement;
      parent.insertBefore(child, place);
      // Whoever moves in the document loses the focus.
      if (child.contains(focused)) focused.focus({ preventScroll: true });
    }
  }
  for (const gone of known.values()) gone.remove();
}

/** Rows of a table whose cells are texts: [text, class] or text. */
export function rows(body, items, keyOf, cellsOf) {
  const make = (item) => element("tr", {}, ...cellsOf(item).map((cell) => element("td", Array.isArray(cell) ? { class: cell[1] } : {})));
  each(body, items, keyOf, make, (row, item) => {
    cellsOf(item).forEach((cell, index) => text(row.children[index], Array.isArray(cell) ? cell[0] : cell));
  });
}

// The address says what is shown: #trace=...&layer=...&head=...&measure=...&beside=...&with=...&step=...
// Every choice changes the address, and the page shows what the address says: so links and the back button work.
const CHOICES = ["layer", "head", "measure", "beside", "with"];
let shownAddress = null;

function address() {
  return new URLSearchParams(location.hash.slice(1));
}

function choose(changes) {
  const said = address();
  if (left.trace) said.set("trace", left.trace.name);
  for (const id of ["layer", "head", "measure"]) said.set(id, $(id).value);
  for (const [name, value] of Object.entries(changes)) value === null || value === "" ? said.delete(name) : said.set(name, value);
  if (!said.get("beside")) said.delete("with");
  location.hash = said; // a new entry of the history
  showAddress();
}

function rememberStep(step) { // in the place of the current entry
  const said = address();
  if (step === null) said.delete("step");
  else said.set("step", step);
  if (String(said) === location.hash.slice(1)) return;
  shownAddress = `#${said}`;
  location.replace(shownAddress);
}

function showAddress() {
  const now = location.hash;
  if (now === shownAddress) return;
  shownAddress = now;
  notice("");
  const said = address(), wanted = said.get("trace"), beside = said.get("beside") ?? "";
  const number = named(wanted) ?? order[0];
  if (wanted !== null && named(wanted) === null) notice(`This report holds no trace ${wanted}.`);
  withTrace(number, (trace) => {
    if (shownAddress === now) withOther(beside, said.get("with"), trace, (other) => shownAddress === now && showTraces(trace, other, said));
  });
}

function named(name) {
  const number = index.traces.findIndex((trace) => trace.name === name);
  return number < 0 ? null : number;
}

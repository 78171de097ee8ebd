// Not a module, so that it runs before the first paint: light, dark, or as the system.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let choice = null;
    try {
      choice = localStorage.getItem("lisaseg.theme");
    } catch {} // forbidden by the browser
    document.documentElement.dataset.theme = choice === "light" || choice === "dark" ? choice : dark.matches ? "dark" : "light";
  };
  apply();
  dark.addEventListener("change", apply);
  addEventListener("lisaseg:theme", apply);
})();

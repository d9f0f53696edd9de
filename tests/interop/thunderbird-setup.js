// Runs inside Thunderbird: its own account set-up for an address, then its own check of the login.
const [address, password, root, done] = arguments;

async function setUp() {
  Cc["@mozilla.org/security/x509certdb;1"]
    .getService(Ci.nsIX509CertDB)
    .addCertFromBase64(root, "C,C,C");
  const {FindConfig} = ChromeUtils.importESModule(
    "resource:///modules/accountcreation/FindConfig.sys.mjs");
  const {ConfigVerifier} = ChromeUtils.importESModule(
    "resource:///modules/accountcreation/ConfigVerifier.sys.mjs");
  const {AccountConfig} = ChromeUtils.importESModule(
    "resource:///modules/accountcreation/AccountConfig.sys.mjs");
  const search = FindConfig.parallelAutoDiscovery(
    address.split("@")[1], address, new AbortController().signal, password);
  let step = await search.next();
  while (!step.done) {
    step = await search.next(false);
  }
  const config = step.value;
  const server = ({hostname, port, socketType, auth, username, type}) =>
    ({hostname, port, socketType, auth, username, type});
  const found = {
    source: String(config.source),
    incoming: [config.incoming, ...config.incomingAlternatives].map(server),
    outgoing: [config.outgoing, ...config.outgoingAlternatives].map(server),
  };
  AccountConfig.replaceVariables(config, "Alice", address, password);
  const verified = await new ConfigVerifier(null, new AbortController().signal).verifyConfig(config, false);
  return {found, verified: verified.incoming.hostname};
}

setUp().then(done, error => done({error: String(error) + " " + (error?.stack ?? "")}));

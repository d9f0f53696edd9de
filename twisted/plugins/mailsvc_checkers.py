from twisted.cred.credentials import IUsernamePassword

from mailsvc.checkers.plugin import CheckerFactory
from mailsvc.credentials import IToken

ldap = CheckerFactory("ldap", (IUsernamePassword,), "host=HOST:base=DN:... or file=PATH")
pam = CheckerFactory("pam", (IUsernamePassword,), "SERVICE[:domain=DOMAIN]")
postgresql = CheckerFactory(
    "postgresql", (IUsernamePassword,), "conninfo=CONNINFO:query=SELECT... or file=PATH")
oauth = CheckerFactory("oauth", (IToken,), "url=URL:client_id=ID:client_secret_file=PATH:... or "
                       "file=PATH")

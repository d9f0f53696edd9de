from twisted.application.service import ServiceMaker

mailsvc = ServiceMaker("mailsvc", "mailsvc.plugin", "SMTP and POP3 over maildirs.", "mailsvc")

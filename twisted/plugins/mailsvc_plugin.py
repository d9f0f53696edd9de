from twisted.application.service import ServiceMaker

mailsvc = ServiceMaker("mailsvc", "mailsvc.tap", "SMTP and POP3 over maildirs.", "mailsvc")

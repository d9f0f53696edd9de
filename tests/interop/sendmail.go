// Sends the message on standard input with net/smtp:
//
//	sendmail HOST:PORT FROM TO...
//
// With -calls it makes the calls of smtp.SendMail one by one.
package main

import (
	"fmt"
	"io"
	"net/smtp"
	"os"
)

func main() {
	arguments := os.Args[1:]
	send := func(address, from string, to []string, message []byte) error {
		return smtp.SendMail(address, nil, from, to, message)
	}
	if arguments[0] == "-calls" {
		arguments = arguments[1:]
		send = call
	}
	message, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = send(arguments[0], arguments[1], arguments[2:], message)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// EHLO, MAIL, RCPT, DATA, QUIT, each in its own call.
func call(address, from string, to []string, message []byte) error {
	client, err := smtp.Dial(address)
	if err != nil {
		return err
	}
	defer client.Close()
	if err = client.Hello("go.example.net"); err != nil {
		return err
	}
	if err = client.Mail(from); err != nil {
		return err
	}
	for _, recipient := range to {
		if err = client.Rcpt(recipient); err != nil {
			return err
		}
	}
	writer, err := client.Data()
	if err != nil {
		return err
	}
	if _, err = writer.Write(message); err != nil {
		return err
	}
	if err = writer.Close(); err != nil {
		return err
	}
	return client.Quit()
}

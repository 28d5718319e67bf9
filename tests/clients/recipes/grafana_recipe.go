// Runs the block for Grafana of docs/clients.md with Grafana's mail library, as its pkg/services/notifications/smtp.go
// does: go run grafana_recipe.go SUBJECT BLOCK
package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"gopkg.in/mail.v2"
)

func main() {
	block, err := os.ReadFile(os.Args[2])
	check(err)
	settings := map[string]string{}
	for _, line := range strings.Split(string(block), "\n") {
		if name, value, found := strings.Cut(line, " = "); found {
			settings[name] = value
		}
	}
	host, text, err := net.SplitHostPort(settings["host"])
	check(err)
	port, err := strconv.Atoi(text)
	check(err)
	dialer := mail.NewDialer(host, port, settings["user"], settings["password"])
	dialer.TLSConfig = &tls.Config{InsecureSkipVerify: settings["skip_verify"] == "true", ServerName: host}
	policies := map[string]mail.StartTLSPolicy{"NoStartTLS": mail.NoStartTLS, "MandatoryStartTLS": mail.MandatoryStartTLS}
	dialer.StartTLSPolicy = policies[settings["startTLS_policy"]] // OpportunisticStartTLS is 0
	message := mail.NewMessage()
	message.SetHeader("From", settings["from_address"])
	message.SetHeader("To", "to@x.example")
	message.SetHeader("Subject", os.Args[1])
	message.SetBody("text/plain", "Hello")
	check(dialer.DialAndSend(message))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

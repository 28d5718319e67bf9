// Runs the block for Jakarta Mail of docs/clients.md, which takes the place of the line RECIPE:
//     java JakartaMailRecipe.java SUBJECT
// Without arguments it prints the version of Jakarta Mail.

import jakarta.mail.Message;
import jakarta.mail.Session;
import jakarta.mail.Transport;
import jakarta.mail.internet.InternetAddress;
import jakarta.mail.internet.MimeMessage;
import java.util.Properties;

class JakartaMailRecipe {
    public static void main(String[] arguments) throws Exception {
        if (arguments.length == 0) {
            System.out.println("Jakarta Mail " + Session.class.getPackage().getImplementationVersion() + ", Java " + System.getProperty("java.version"));
            return;
        }
        MimeMessage message = new MimeMessage((Session) null);
        message.setFrom(new InternetAddress("you@example.com"));
        message.setRecipient(Message.RecipientType.TO, new InternetAddress("to@x.example"));
        message.setSubject(arguments[0]);
        message.setText("Hello");
	// RECIPE
    }
}
